"""Evaluation of records under editors: every record once, whatever happens, and different runs are never mixed."""

import re
from dataclasses import replace

import pytest
import torch
from support.aged import age_lines
from support.evaluation import NUMBERS, RECORDS, SHORT, JudgedEdit, RandomEdit, RandomEdits, run
from support.families import KINDS

from tl_rome.counterfact import evaluate, load_results, summarize, to_dataset
from tl_rome.counterfact.evaluation.measure import compare, measure
from tl_rome.editors import FT, FineTune
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.errors import InputError, StorageError
from tl_rome.running.matrices import w_out

KIND = KINDS[0]
each_kind = pytest.mark.parametrize("kind", KINDS)


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
        (moved,) = compare(model, [before.states], [after.states])
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
    (file,) = map(age_lines, tmp_path.glob("editors/*.jsonl"))
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
        (RECORDS, {"batch_size": 0}, "batch_size is 0; give a number of at least 1"),
        (RECORDS, {"shard": (2, 2)}, "shard 2 of 2 of 5 records"),
        (RECORDS, {"shard": (5, 6)}, "shard 5 of 6 of 5 records"),
        (RECORDS, {"editor": {"unedited": RandomEdit()}}, "'unedited' is the name of the model without edits"),
    ],
)
def test_impossible_runs_are_refused(tiny, records, options, message):
    with pytest.raises(InputError, match=message):
        run(tiny("gpt2", KIND), records=records, **options)


def test_an_editor_that_returns_no_edits_ends_the_run(tiny):
    with pytest.raises(TypeError, match=r"made 2 objects \(NoneType\) for 2 requests; return one Edit for each"):
        run(tiny("gpt2", KIND), lambda model, request: None)


def test_without_a_store_a_temporary_folder_is_needed(tiny, monkeypatch, tmp_path):
    model = tiny("gpt2", KIND)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageError, match=r"cannot make a temporary folder .*give a store"):
        run(model)


def test_a_finished_store_in_a_read_only_folder_is_read_again(tiny, monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise PermissionError("Permission denied")

    model = tiny("gpt2", KIND)
    first = run(model, RandomEdit(), records=RECORDS[:2], store=tmp_path)
    monkeypatch.setattr("tl_rome.storage.ledger.FileLock", refuse)
    assert run(model, RandomEdit(), records=RECORDS[:2], store=tmp_path) == first
    monkeypatch.setattr("tl_rome.counterfact.evaluation.evaluate.measure", None)  # nothing is measured in vain
    next(tmp_path.glob("editors/*.jsonl")).unlink()
    with pytest.raises(StorageError, match=r"cannot write .*: Permission denied"):
        run(model, RandomEdit(), records=RECORDS[:2], store=tmp_path)
