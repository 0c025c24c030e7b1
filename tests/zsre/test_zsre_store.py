"""zsRE scores on disk: a run that was interrupted continues, and only its own."""

import os
from dataclasses import replace

import pytest
from support.evaluation import Deadly, RandomEdit, killed
from support.families import KINDS
from support.zsre import RECORDS

from tl_rome.counterfact.results import UNEDITED
from tl_rome.editors.identity import describe_editor
from tl_rome.errors import ModelMismatchError, NumericsError, StorageError
from tl_rome.storage.ledger import read_ledger
from tl_rome.zsre import evaluate_zsre

KIND = KINDS[0]
SUBJECTS = [record.subject for record in RECORDS]


def run(model, editor, **options):
    records = options.pop("records", RECORDS)
    return evaluate_zsre(model, records, {"e": editor}, **{"batch_size": 1, "progress": False, **options})


def lines(path):
    """Numbers of the records in a file."""
    return [line["case_id"] for line in read_ledger(path)[1:]]


def watched(inner):
    """An editor, and the subjects that it is called for."""
    calls = []

    def editor(model, request):
        calls.append(request.subject)
        return inner(model, request)

    vars(editor)["identity"] = lambda: ["the calls decide nothing", describe_editor(inner)]
    return editor, calls


@pytest.mark.leg("3.9")
def test_a_killed_run_continues_and_ends_as_if_nothing_had_happened(tiny, tmp_path):
    model, editor = tiny("gpt2", KIND), Deadly(survivor=os.getpid(), victim=SUBJECTS[2])
    whole = run(model, editor)
    killed(lambda: run(model, editor, store=tmp_path))
    [file] = tmp_path.glob("editors/e-*.jsonl")
    assert (lines(tmp_path / "unedited.jsonl"), lines(file)) == ([0, 1, 2], [0, 1])
    assert run(model, editor, store=tmp_path) == whole
    assert lines(file) == [0, 1, 2]


def test_what_is_stored_is_not_done_again(tiny, tmp_path, capsys):
    model, (editor, calls) = tiny("gpt2", KIND), watched(RandomEdit(refused=tuple(SUBJECTS[1:2])))
    whole = run(model, editor, store=tmp_path)
    assert whole.failures == {"e": {1: f"NumericsError: no edit of {SUBJECTS[1]}"}}
    assert calls == SUBJECTS
    assert run(model, editor, store=tmp_path, progress=True) == whole
    assert "6/6" in capsys.readouterr().err
    assert calls == SUBJECTS


def test_failures_are_tried_again_where_that_is_asked_for(tiny, tmp_path):
    tried = []

    def editor(model, request):
        if not tried:
            tried.append(request)
            raise NumericsError("this time")
        return RandomEdit()(model, request)

    vars(editor)["identity"] = lambda: "fails once"
    model = tiny("gpt2", KIND)
    assert run(model, editor, store=tmp_path).failures == {"e": {0: "NumericsError: this time"}}
    assert run(model, editor, store=tmp_path).failures == {"e": {0: "NumericsError: this time"}}
    assert run(model, editor, store=tmp_path, retry_failed=True) == run(model, editor)


def test_an_editor_of_other_settings_has_scores_of_its_own(tiny, tmp_path):
    model, (strong, calls) = tiny("gpt2", KIND), watched(RandomEdit(strength=20.0))
    run(model, RandomEdit(), store=tmp_path)
    [weak_file] = tmp_path.glob("editors/e-*.jsonl")
    found = run(model, strong, store=tmp_path)
    assert calls == SUBJECTS
    assert found == run(model, strong)
    [strong_file] = {*tmp_path.glob("editors/e-*.jsonl")} - {weak_file}
    weak_file.replace(strong_file)
    with pytest.raises(StorageError, match="was made with config"):
        run(model, strong, store=tmp_path)


def test_a_store_of_another_model_or_other_records_is_refused(fresh_tiny, tmp_path):
    model, editor = fresh_tiny("gpt2", KIND), RandomEdit()
    run(model, editor, store=tmp_path)
    for records in (RECORDS[:2], [replace(RECORDS[0], answer="Leeds"), *RECORDS[1:]]):
        with pytest.raises(StorageError, match=r"unedited.jsonl was made with dataset '\w+', not '\w+'"):
            run(model, editor, store=tmp_path, records=records)
    assert run(model, editor, store=tmp_path, records=RECORDS[::-1]).figures[UNEDITED].keys() == {2, 1, 0}
    with editor(model, RECORDS[0].request).applied(model), pytest.raises(ModelMismatchError, match="weights"):
        run(model, editor, store=tmp_path)


def test_a_store_that_cannot_be_written_is_an_error_before_any_work(tiny, tmp_path):
    (tmp_path / "file").touch()
    editor, calls = watched(RandomEdit())
    with pytest.raises(StorageError, match="cannot write"):
        run(tiny("gpt2", KIND), editor, store=tmp_path / "file" / "run")
    assert not calls
