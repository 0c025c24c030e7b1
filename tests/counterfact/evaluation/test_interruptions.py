"""Interrupted runs: what was finished is stored, and the run continues to the results of an uninterrupted one."""

import errno
import os
import shutil
import signal
from dataclasses import replace

import pytest
from support.evaluation import NUMBERS, QUICK, RECORDS, SHORT, Deadly, RandomEdit, killed, run
from support.families import KINDS

from tl_rome.counterfact import evaluate, load_results
from tl_rome.errors import ModelMismatchError, StorageError
from tl_rome.fact_files import Target
from tl_rome.storage import ledger as ledgers

KIND = KINDS[0]


def test_an_unexpected_error_ends_the_run_and_finished_batches_are_stored(tiny, tmp_path):
    model, calls = tiny("gpt2", KIND), []

    def editor(model, request):
        calls.append(request)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return RandomEdit()(model, request)

    vars(editor)["identity"] = lambda: "the calls decide nothing"
    with pytest.raises(KeyboardInterrupt):
        run(model, editor, store=tmp_path)
    assert len(load_results(tmp_path)) == 2
    results = run(model, editor, store=tmp_path)
    assert [result.case_id for result in results] == NUMBERS
    assert len(calls) == 4 + 3, "the finished batch is not made again"


def test_ctrl_c_comes_after_a_temporary_folder_is_gone(tiny, monkeypatch, tmp_path):
    def interrupted(path, **options):
        os.kill(os.getpid(), signal.SIGINT)
        remove(path, **options)

    model, remove = tiny("gpt2", KIND), shutil.rmtree
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tempfile._shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, RECORDS[:1], config=QUICK, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_store_of_another_run_is_refused_with_the_difference(fresh_tiny, tmp_path):
    model, editor = fresh_tiny("gpt2", KIND), RandomEdit()
    run(model, editor, store=tmp_path)
    moved = replace(RECORDS[0].requested_rewrite, target_new=Target("Athens"))
    others = (replace(RECORDS[0], requested_rewrite=moved), *RECORDS[1:])
    for options, message in (
        ({"seed": 1}, "seed 0, not 1"),
        ({"config": replace(QUICK, counterfact_plus=True)}, "counterfact_plus False, not True"),
        ({"records": others}, r"dataset '\w+', not '\w+'"),
    ):
        with pytest.raises(StorageError, match=f"unedited.jsonl was made with {message}; name another place"):
            run(model, editor, store=tmp_path, **options)
    with editor(model, RECORDS[0].request).applied(model), pytest.raises(ModelMismatchError, match="weights"):
        run(model, editor, store=tmp_path)


def test_a_store_that_cannot_be_written_is_an_error_before_any_work(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        run(tiny("gpt2", KIND), RandomEdit(), store=tmp_path / "file" / "run")


def test_a_full_disk_ends_the_run_and_loses_only_the_current_batch(tiny, tmp_path, monkeypatch):
    model, editor = tiny("gpt2", KIND), RandomEdit()
    whole, writes = run(model, editor), []

    def fill(file, data):
        writes.append(data)
        if len(writes) == 5:
            file.write(data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write(data)

    with monkeypatch.context() as patched:
        patched.setattr(ledgers, "_write_all", fill)
        with pytest.raises(StorageError, match=r"No space left on device; what was written before is kept"):
            run(model, editor, store=tmp_path)
    assert len(load_results(tmp_path)) == 2
    assert run(model, editor, store=tmp_path) == whole


def torn(file, data):
    """Write a part of the third line of an editor, and die."""
    if "editors" in str(file.name) and b'"case_id": 5' in data:
        file.write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    file.write(data)


@pytest.mark.parametrize(("batch_size", "kept"), [(1, 3), (2, 2)])
def test_a_killed_run_continues_and_ends_as_if_nothing_had_happened(tiny, tmp_path, batch_size, kept):
    model, editor = tiny("gpt2", KIND), Deadly(survivor=os.getpid())
    whole = run(model, editor, batch_size=batch_size, config=SHORT)
    killed(lambda: run(model, editor, store=tmp_path, batch_size=batch_size, config=SHORT))
    assert len(load_results(tmp_path)) == kept
    assert run(model, editor, store=tmp_path, batch_size=batch_size, config=SHORT) == whole
    assert load_results(tmp_path)[:kept] == whole[:kept]
    assert sorted(result.case_id for result in load_results(tmp_path)) == sorted(NUMBERS)


def test_a_run_killed_while_writing_continues_too(tiny, tmp_path, monkeypatch):
    model, editor = tiny("gpt2", KIND), RandomEdit()
    whole = run(model, editor, batch_size=1)

    def write_and_die():
        monkeypatch.setattr(ledgers, "_write_all", torn)
        run(model, editor, store=tmp_path, batch_size=1)

    killed(write_and_die)
    (file,) = tmp_path.glob("editors/*.jsonl")
    assert not file.read_bytes().endswith(b"\n")
    assert len(load_results(tmp_path)) == 2
    assert run(model, editor, store=tmp_path, batch_size=1) == whole


def test_progress_counts_records_and_what_was_done_before(tiny, tmp_path, capsys):
    model = tiny("gpt2", KIND)
    run(model, store=tmp_path)
    run(model, {"random": RandomEdit()}, store=tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "unedited: 100%" in shown
    assert "random: 100%" in shown
    assert "5/5" in shown
