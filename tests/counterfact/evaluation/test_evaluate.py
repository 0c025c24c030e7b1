"""Evaluation of records under editors: every record once, whatever happens, and never a mixture."""

import errno
import os
import re
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from support.evaluation import RECORDS, SHORT, JudgedEdit, RandomEdit, RandomEdits
from support.families import KINDS

from tl_rome.counterfact import evaluate, load_results, summarize, to_dataset
from tl_rome.counterfact.evaluation.measure import EvaluationConfig, compare, measure
from tl_rome.editors import FT, FineTune
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.errors import InputError, ModelMismatchError, StorageError
from tl_rome.fact_files import Target
from tl_rome.sites import w_out
from tl_rome.storage import ledger as ledgers

KIND = KINDS[0]
QUICK = EvaluationConfig(generation_length=0)
NUMBERS = [record.case_id for record in RECORDS]
each_kind = pytest.mark.parametrize("kind", KINDS)


def run(model, editor=None, records=RECORDS, **options):
    return evaluate(model, records, editor, **{"config": QUICK, "progress": False, "batch_size": 2, **options})


def untimed(results):
    return [replace(result, seconds=0.0) for result in results]


def tuned(**changes):
    return FineTune(layer=1, config=replace(FT, max_steps=3, learning_rate=0.01, **changes))


@each_kind
def test_every_record_is_measured_before_and_after_its_own_edit(fresh_tiny, kind):
    model, editor = fresh_tiny("llama", kind), tuned()
    weights = w_out(model, 1).clone()
    results = evaluate(model, RECORDS, editor, config=SHORT, batch_size=3, progress=False)
    assert [result.case_id for result in results] == NUMBERS
    for record, found in zip(RECORDS, results, strict=True):
        (before,) = measure(model, [record], SHORT)
        (after,) = measure(model, [record], SHORT, edits=VirtualEdits(model, [editor(model, record.request)]))
        assert (found.rewrite, found.editor, found.error) == (record.requested_rewrite, "ft", None)
        assert found.seconds > 0
        for group in ("rewrite", "paraphrase", "neighborhood", "neighborhood_plus", "attribute"):
            for seen, expected in ((found.before, before), (found.after, after)):
                scores, alone = (getattr(each, group) for each in (seen, expected.measurement))
                assert scores.logprob_new == pytest.approx(alone.logprob_new, rel=1e-4)
                assert scores.logprob_true == pytest.approx(alone.logprob_true, rel=1e-4)
        assert found.before.generations == before.measurement.generations
        assert found.after.generations == after.measurement.generations
        moved = compare(model, before.states, after.states)
        assert found.divergence.neighborhood == pytest.approx(moved.neighborhood, rel=1e-2)
        assert found.divergence.essence == pytest.approx(moved.essence, rel=1e-2)
    assert summarize(results).rows["ft"]["ES"].n == len(RECORDS)
    assert torch.equal(w_out(model, 1), weights)


def test_the_unedited_model_is_measured_once_for_all_editors(tiny, tmp_path, monkeypatch):
    model, runs = tiny("gpt2", KIND), []

    def count(model, records, config, **options):
        runs.append("edited" if options.get("edits") else "unedited")
        return measure(model, records, config, **options)

    monkeypatch.setattr("tl_rome.counterfact.evaluation.evaluate.measure", count)
    results = run(model, {"weak": RandomEdit(strength=0.1), "strong": RandomEdit()}, store=tmp_path)
    assert [(r.editor, r.case_id) for r in results] == [(name, n) for name in ("weak", "strong") for n in NUMBERS]
    run(model, {"other": tuned()}, store=tmp_path)
    assert runs.count("unedited") == 3, "three batches"
    assert runs.count("edited") == 9
    assert run(model, {"weak": RandomEdit(strength=0.1)}, store=tmp_path) == results[: len(RECORDS)]
    assert len(runs) == 12, "nothing is done twice"
    assert len(load_results(tmp_path)) == 15
    assert results[0].settings["editor_settings"]["strength"] == 0.1
    assert (results[0].settings["seed"], results[0].settings["records"]) == (0, len(RECORDS))


def test_verdicts_of_receipts_are_kept_and_counted(tiny, tmp_path):
    verdicts = ("took", "partly", "did not take", "took")
    judged = tuple((record.request.subject, verdict) for record, verdict in zip(RECORDS, verdicts, strict=False))
    results = run(tiny("gpt2", KIND), {"judged": JudgedEdit(verdicts=judged)}, store=tmp_path)
    assert [result.verdict for result in results] == [*verdicts, None]
    assert load_results(tmp_path) == results
    took = summarize(results).rows["judged"]["took"]
    assert (took.mean, took.n) == (50.0, 4)
    assert [row["took"] for row in to_dataset(results)] == [100.0, 0.0, 0.0, 100.0, None]
    assert [row["verdict"] for row in to_dataset(results)] == [*verdicts, None]


def test_results_that_were_stored_without_verdicts_are_read(tiny, tmp_path):
    results = run(tiny("gpt2", KIND), RandomEdit(), store=tmp_path)
    (file,) = tmp_path.glob("editors/*.jsonl")
    file.write_text(re.sub(r'"verdict": ?[^,}]*, ?', "", file.read_text()))
    assert "verdict" not in file.read_text()
    assert load_results(tmp_path) == results
    summary = summarize(results)
    assert summary.rows["randomedit"]["took"].n == 0
    assert "took" not in summary.columns


def test_the_unedited_model_alone(tiny):
    results = run(tiny("gpt2", KIND))
    assert [result.case_id for result in results] == NUMBERS
    assert all(result.after == result.before is not None for result in results)
    assert list(summarize(results).rows) == ["unedited"]


def test_shards_with_a_store_each_are_the_whole_run(tiny, tmp_path):
    model, editor = tiny("gpt2", KIND), RandomEdit()
    whole = run(model, editor, batch_size=1)
    shards = [run(model, editor, batch_size=1, store=tmp_path / str(i), shard=(i, 2)) for i in range(2)]
    assert [[result.case_id for result in shard] for shard in shards] == [NUMBERS[0::2], NUMBERS[1::2]]
    joined = [result for i in range(2) for result in load_results(tmp_path / str(i))]
    assert sorted(joined, key=lambda result: NUMBERS.index(result.case_id)) == whole
    assert summarize(joined).grid() == summarize(whole).grid()
    assert run(model, editor, batch_size=1, store=tmp_path / "0") == whole, "a shard can be made whole"
    assert run(model, editor, batch_size=1, store=tmp_path / "0", shard=(1, 2)) == shards[1]


def test_one_editor_with_two_settings_is_two_editors(tiny, tmp_path):
    model = tiny("gpt2", KIND)
    weak, strong = (run(model, {"e": RandomEdit(strength=s)}, store=tmp_path) for s in (0.1, 2.0))
    assert weak[0].config != strong[0].config
    assert weak[0].after != strong[0].after
    assert len(load_results(tmp_path)) == 2 * len(RECORDS)


@pytest.mark.parametrize("editor", [RandomEdit, RandomEdits])
def test_a_record_that_cannot_be_edited_is_reported_and_the_others_go_on(tiny, editor, caplog):
    refused = RECORDS[2].request.subject
    results = run(tiny("gpt2", KIND), editor(refused=(refused,)), batch_size=4)
    errors = {result.case_id: result.error for result in results if result.error}
    assert errors == {5: f"NumericsError: no edit of {refused}"}
    assert all((result.after is None) == (result.error is not None) for result in results)
    assert results[2].before is not None
    assert f"left out record 5: NumericsError: no edit of {refused}" in caplog.text
    assert summarize(results).failures["randomedit" if editor is RandomEdit else "randomedits"].keys() == {5}


def test_a_record_that_cannot_be_measured_is_reported_too(tiny, caplog):
    long = replace(RECORDS[1], neighborhood_prompts=("Rome " * 200,))
    results = run(tiny("gpt2", KIND), RandomEdit(), [RECORDS[0], long])
    assert (results[1].before, results[1].after) == (None, None)
    assert "the model's context only 128" in results[1].error
    assert results[0].after is not None


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "0 case_ids of 0 records"),
        ([RECORDS[0], RECORDS[0]], {}, "1 case_ids of 2 records"),
        (RECORDS, {"batch_size": 0}, "batch_size=0"),
        (RECORDS, {"shard": (2, 2)}, "shard 2 of 2 of 5 records"),
        (RECORDS, {"shard": (5, 6)}, "shard 5 of 6 of 5 records"),
        (RECORDS, {"editor": {"unedited": RandomEdit()}}, "'unedited' is the name of the model without edits"),
    ],
)
def test_impossible_runs_are_refused(tiny, records, options, message):
    with pytest.raises(InputError, match=message):
        run(tiny("gpt2", KIND), records=records, **options)


def test_an_editor_that_returns_no_edits_ends_the_run(tiny):
    with pytest.raises(TypeError, match=r"made 2 objects \(NoneType\) of 2 requests; return an Edit each"):
        run(tiny("gpt2", KIND), lambda model, request: None)


def test_an_unexpected_error_ends_the_run_after_what_is_done_was_stored(tiny, tmp_path):
    model, calls = tiny("gpt2", KIND), []

    def editor(model, request):
        calls.append(request)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return RandomEdit()(model, request)

    with pytest.raises(KeyboardInterrupt):
        run(model, editor, store=tmp_path)
    assert len(load_results(tmp_path)) == 2
    results = run(model, editor, store=tmp_path)
    assert [result.case_id for result in results] == NUMBERS
    assert len(calls) == 4 + 3, "the finished batch is not made again"


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


def test_a_store_that_cannot_be_written_is_an_error_at_once(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        run(tiny("gpt2", KIND), RandomEdit(), store=tmp_path / "file" / "run")


def test_a_full_disk_ends_the_run_and_loses_the_batch_in_hand_alone(tiny, tmp_path, monkeypatch):
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


@dataclass(frozen=True)
class Deadly(RandomEdit):
    """Kills its process in the middle of a record, if it is the process to be killed."""

    survivor: int = 0
    victim: str = RECORDS[3].request.subject

    def __call__(self, model, request):
        if request.subject == self.victim and os.getpid() != self.survivor:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(model, request)


def torn(file, data):
    """Write a part of the third line of an editor, and die."""
    if "editors" in str(file.name) and b'"case_id": 5' in data:
        file.write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    file.write(data)


def killed(work):
    """Do some work in a process of its own, which must not survive it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(("batch_size", "kept"), [(1, 3), (2, 2)])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tiny, tmp_path, batch_size, kept):
    model, editor = tiny("gpt2", KIND), Deadly(survivor=os.getpid())
    whole = run(model, editor, batch_size=batch_size, config=SHORT)
    killed(lambda: run(model, editor, store=tmp_path, batch_size=batch_size, config=SHORT))
    assert len(load_results(tmp_path)) == kept
    assert run(model, editor, store=tmp_path, batch_size=batch_size, config=SHORT) == whole
    assert load_results(tmp_path)[:kept] == whole[:kept]
    assert sorted(result.case_id for result in load_results(tmp_path)) == sorted(NUMBERS)


def test_a_run_killed_while_it_wrote_goes_on_too(tiny, tmp_path, monkeypatch):
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
