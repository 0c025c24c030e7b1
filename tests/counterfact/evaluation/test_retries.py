"""Failures are kept, and tried again only where that is asked for; what replaces them is the record's result."""

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from support.evaluation import NUMBERS, RECORDS, RandomEdit
from support.evaluation import run as run_batches
from support.families import KINDS

from tl_rome.counterfact import evaluate_in_processes, load_results, summarize, sweep_editors
from tl_rome.counterfact.evaluation import evaluate as module
from tl_rome.counterfact.evaluation.measure import measure
from tl_rome.errors import NetworkError, UnsupportedModelError

KIND = KINDS[0]


def run(*arguments, **options):
    """Each record alone, so that it has the same figures whatever failed beside it."""
    return run_batches(*arguments, **{"batch_size": 1, **options})


@dataclass(frozen=True)
class Once(RandomEdit):
    """Raises an error at its first call for a subject, and counts its calls."""

    victim: str = RECORDS[2].request.subject
    error: Any = None
    calls: Any = None

    def identity(self):
        return "random"

    def __call__(self, model, request):
        self.calls.append(request.subject)
        if request.subject == self.victim and self.calls.count(request.subject) == 1:
            raise self.error
        return super().__call__(model, request)


ERRORS = {"network": NetworkError("no answer"), "memory": torch.cuda.OutOfMemoryError("out of memory")}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_failure_is_tried_again_on_request_and_replaced(tiny, tmp_path, caplog, error):
    model, editor = tiny("gpt2", KIND), Once(error=error, calls=[])
    whole = run(model, {"e": RandomEdit()})
    first = run(model, {"e": editor}, store=tmp_path)
    assert [result.error is None for result in first] == [True, True, False, True, True]
    assert "1 of 5 results are failures, which are kept; the same call with retry_failed=True" in caplog.text
    calls = len(editor.calls)
    assert run(model, {"e": editor}, store=tmp_path) == first
    assert len(editor.calls) == calls, "not without being asked"
    caplog.clear()
    again = run(model, {"e": editor}, store=tmp_path, retry_failed=True)
    assert len(editor.calls) == calls + 1
    assert not caplog.text
    same = [replace(result, config="") for result in whole]
    assert [replace(result, config="") for result in again] == same
    assert [replace(result, config="") for result in load_results(tmp_path)] == same
    assert summarize(load_results(tmp_path)).rows["e"]["ES"].n == len(RECORDS)
    (file,) = tmp_path.glob("editors/*.jsonl")
    assert len(file.read_text().splitlines()) == 1 + len(RECORDS) + 1, "the failure stays on record"
    assert run(model, {"e": editor}, store=tmp_path, retry_failed=True) == again
    assert len(editor.calls) == calls + 1


def test_a_failure_that_stays_one_is_a_failure_still(tiny, tmp_path):
    model, editor = tiny("gpt2", KIND), RandomEdit(refused=(RECORDS[2].request.subject,))
    first = run(model, editor, store=tmp_path)
    assert run(model, editor, store=tmp_path, retry_failed=True) == first == load_results(tmp_path)


def test_failures_of_the_unedited_model_are_tried_again_too(tiny, tmp_path, monkeypatch):
    model, victim = tiny("gpt2", KIND), RECORDS[2]

    def fail(model, records, *rest, **options):
        if victim in records:
            raise UnsupportedModelError("not today")
        return measure(model, records, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(module, "measure", fail)
        assert [result.before is None for result in run(model, RandomEdit(), store=tmp_path)].index(True) == 2
        run(model, RandomEdit(), store=tmp_path, retry_failed=True)
    again = run(model, RandomEdit(), store=tmp_path, retry_failed=True)
    assert again == run(model, RandomEdit())
    assert sorted(result.case_id for result in load_results(tmp_path)) == sorted(NUMBERS)


def test_every_way_to_evaluate_takes_the_request(tiny, tmp_path, monkeypatch):
    model, asked = tiny("gpt2", KIND), []
    left = module.Run._left
    monkeypatch.setattr(module.Run, "_left", lambda self, ledger: asked.append(self.retry_failed) or left(self, ledger))
    options = {"store": tmp_path, "retry_failed": True, "progress": False}
    sweep_editors(model, RECORDS[:2], {1.0: RandomEdit()}, **options)
    evaluate_in_processes(lambda: model, RECORDS[:2], workers=1, **options | {"store": tmp_path / "other"})
    assert asked == [True] * 3


def test_an_error_that_no_file_takes_is_kept_in_words(tiny, tmp_path):
    def editor(model, request):
        raise NetworkError("half \ud83d of it\x1b[2J")

    results = run(tiny("gpt2", KIND), {"e": editor}, RECORDS[:1], store=tmp_path)
    assert [result.error for result in results] == [r"NetworkError: half \ud83d of it\x1b[2J"]
    assert load_results(tmp_path) == results


def test_two_partials_in_one_store_do_not_share_results(tiny, tmp_path):
    model, one = tiny("gpt2", KIND), RECORDS[:1]
    run(model, {"e": partial(edit_by, strength=0.0)}, one, store=tmp_path)
    (found,) = run(model, {"e": partial(edit_by, strength=50.0)}, one, store=tmp_path)
    assert found.after == run(model, RandomEdit(strength=50.0), one)[0].after != found.before


def edit_by(model, request, strength):
    return RandomEdit(strength=strength)(model, request)


def test_an_editor_of_unknown_content_is_measured_again_in_every_run(tiny, tmp_path, caplog):
    model, calls = tiny("gpt2", KIND), iter(range(10**6))
    source = (RandomEdit(strength=1.0 + 0 * call) for call in calls)

    def editor(model, request):
        return next(source)(model, request)

    first, second = (run(model, {"e": editor}, store=tmp_path) for _ in range(2))
    assert [result.after for result in first] == [result.after for result in second]
    assert first[0].config != second[0].config
    assert next(calls) == 2 * len(RECORDS)
    assert "results of 'e' cannot be continued by a later run: it holds builtins.generator" in caplog.text
    json.dumps(first[0].settings, allow_nan=False)
