"""Append-only files: what was written comes back, a torn last line does not, and settings never mix."""

import errno
import json

import pytest
import torch
from support.aged import age_lines
from support.families import KINDS

from tl_rome.errors import ModelMismatchError, StorageError
from tl_rome.running.matrices import w_out
from tl_rome.storage import ledger as ledgers
from tl_rome.storage.ledger import check_settings, model_settings, open_ledger, read_ledger

pytestmark = pytest.mark.leg("3.9", "lowest")

SETTINGS = {"model": "abc", "seed": 1}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "runs" / "a.jsonl"
    with open_ledger(path, "results", SETTINGS) as ledger:
        ledger.append({"name": "東京 \n", "n": 1})
        ledger.append({"name": "Rome", "n": 2})
    return path


def records(path):
    with open_ledger(path, "results", SETTINGS) as ledger:
        return [record["n"] for record in ledger.records]


def test_records_come_back_and_are_added_to(path):
    with open_ledger(path, "results", SETTINGS) as ledger:
        assert ledger.records[0] == {"name": "東京 \n", "n": 1}
        ledger.append({"n": 3})
        assert len(path.read_text("utf-8").splitlines()) == 4, "a record is in the file at once"
    assert records(path) == [1, 2, 3]


def test_several_records_are_added_together(path):
    with open_ledger(path, "results", SETTINGS) as ledger:
        ledger.append({"n": 3}, {"n": 4})
        ledger.append()
        assert [record["n"] for record in ledger.records] == [1, 2, 3, 4]
    assert records(path) == [1, 2, 3, 4]


def test_a_full_disk_leaves_what_was_there_and_the_file_can_be_added_to(path, monkeypatch):
    def fill(file, data):
        file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    with open_ledger(path, "results", SETTINGS) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(ledgers, "_write_all", fill)
            with pytest.raises(StorageError, match=r"cannot write .*a.jsonl: .*No space left on device"):
                ledger.append({"n": 3})
        assert path.read_bytes() == before
        ledger.append({"n": 4})
    assert records(path) == [1, 2, 4]


def test_errors_of_the_work_are_not_taken_for_those_of_the_file(path):
    with pytest.raises(FileNotFoundError, match="mine"), open_ledger(path, "results", SETTINGS):
        raise FileNotFoundError("mine")


@pytest.mark.parametrize("cut", [1, 5, 15])
def test_a_torn_last_line_is_dropped_and_the_next_record_is_whole(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with open_ledger(path, "results", SETTINGS) as ledger:
        assert len(ledger.records) == 1
        ledger.append({"n": 5})
    assert records(path) == [1, 5]


def test_a_character_torn_in_two_is_dropped_too(path):
    path.write_bytes(path.read_bytes() + '{"name": "東'.encode()[:-1])
    assert records(path) == [1, 2]


def test_an_empty_file_is_begun(tmp_path):
    (tmp_path / "a.jsonl").touch()
    assert records(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 2}, StorageError, "made with seed 1, not 2; "),
        ({"sigma": 0.1}, StorageError, "made with sigma None, not 0.1"),
        ({"model": "xyz"}, ModelMismatchError, "made with model 'abc', not 'xyz'"),
    ],
)
def test_other_settings_and_models_are_refused(path, change, error, message):
    before = path.read_bytes()
    with pytest.raises(error, match=message), open_ledger(path, "results", SETTINGS | change):
        pass
    assert path.read_bytes() == before


def test_other_kinds_and_other_files_are_refused(path):
    with pytest.raises(StorageError, match="holds 'results' in schema 2, not 'facts'"), open_ledger(path, "facts", {}):
        pass
    path.write_text('{"a": 1}\n')
    with pytest.raises(StorageError, match="does not begin with the header"):
        records(path)
    path.write_text("[" + path.read_text())
    with pytest.raises(StorageError, match=r"line 1 of .*a.jsonl is damaged"):
        records(path)
    with pytest.raises(StorageError, match="cannot read"):
        read_ledger(path.parent / "none.jsonl")


def test_a_damaged_line_is_named_and_mended_by_taking_it_out(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b"1", b"3", 1), lines[2]]))
    with pytest.raises(StorageError, match=r"line 2 of .*a.jsonl is damaged .*checksum says\); delete that line"):
        records(path)
    path.write_bytes(lines[0] + lines[2])
    assert records(path) == [2]


def test_lines_of_another_file_and_lines_without_a_checksum_are_refused(path):
    other = path.with_name("b.jsonl")
    with open_ledger(other, "results", SETTINGS | {"seed": 2}) as ledger:
        ledger.append({"n": 5})
    whole = path.read_bytes()
    for line in (other.read_bytes().splitlines()[1], b'{"n": 5}'):
        path.write_bytes(whole + line + b"\n")
        with pytest.raises(StorageError, match=r"line 4 of .* is damaged"):
            records(path)


def test_a_file_of_an_earlier_version_goes_on_as_it_is(path, caplog):
    age_lines(path)
    with open_ledger(path, "results", SETTINGS) as ledger:
        ledger.append({"n": 3})
    assert caplog.text.count("without checksums: damage to it is not noticed") == 1
    assert path.read_text("utf-8").splitlines()[-1] == '{"n": 3}'
    assert records(path) == [1, 2, 3]


@pytest.mark.parametrize("value", ["\ud83d", {1}, 10**10_000], ids=["half", "set", "digits"])
def test_a_record_that_cannot_be_written_is_named_and_leaves_the_file_alone(path, value):
    before = path.read_bytes()
    with open_ledger(path, "results", SETTINGS) as ledger:
        with pytest.raises(StorageError, match=r"cannot write the record .* to .*a.jsonl"):
            ledger.append({"n": 3}, {"n": 4, "value": value})
        assert path.read_bytes() == before
        ledger.append({"n": 5})
    assert records(path) == [1, 2, 5]


def test_an_interrupted_write_leaves_no_torn_line_in_the_middle(path, monkeypatch):
    def stop(file, data):
        file.write(data[:10])
        raise KeyboardInterrupt

    with open_ledger(path, "results", SETTINGS) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(ledgers, "_write_all", stop)
            with pytest.raises(KeyboardInterrupt):
                ledger.append({"n": 3})
        ledger.append({"n": 4})
    assert records(path) == [1, 2, 4]


@pytest.mark.parametrize("fields", [{"n": str}, {"n": int, "other": int}])
def test_lines_that_lack_a_field_are_named(path, fields):
    with (
        pytest.raises(StorageError, match=r"line 2 of .*a.jsonl is damaged"),
        open_ledger(path, "results", SETTINGS, fields),
    ):
        pass


def test_a_file_in_a_read_only_folder_is_read(path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    before = path.read_bytes()
    monkeypatch.setattr(ledgers, "FileLock", refuse)
    with open_ledger(path, "results", SETTINGS) as ledger:
        assert [record["n"] for record in ledger.records] == [1, 2]
        ledger.append()
        with pytest.raises(StorageError, match=r"cannot write .*a.jsonl: .*Permission denied"):
            ledger.append({"n": 3})
    assert path.read_bytes() == before
    with pytest.raises(StorageError, match="cannot write"), open_ledger(path.with_name("new"), "results", SETTINGS):
        pass


def fail_while_in_use(path):
    with open_ledger(path, "results", SETTINGS) as ledger:
        ledger.append({"n": 3})
        with pytest.raises(StorageError, match="in use by another process"):
            records(path)
        raise RuntimeError


def test_a_file_in_use_is_refused_and_free_again_after_an_error(path):
    with pytest.raises(RuntimeError):
        fail_while_in_use(path)
    assert records(path) == [1, 2, 3]


def test_equal_settings_pass_however_they_were_stored():
    check_settings("x", json.loads(json.dumps({"a": {"b": 1.5}, "c": None})), {"c": None, "a": {"b": 1.5}})


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_the_last_layer_changes_a_models_settings_and_undoing_it_restores_them(fresh_tiny, kind):
    model = fresh_tiny("llama", kind)
    before = model_settings(model)
    weight = w_out(model, model.cfg.n_layers - 1)
    saved = weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight.add_(torch.outer(*(torch.randn(n, generator=generator) for n in weight.shape)))
    edited = model_settings(model)
    assert edited["weights"] != before["weights"]
    assert edited["model"] == before["model"]
    with torch.no_grad():
        weight.copy_(saved)
    assert model_settings(model) == before
