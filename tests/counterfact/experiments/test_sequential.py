"""Sequential edits: each is made on top of those before it, all are scored, and the weights are restored."""

import json
from dataclasses import replace

import pytest
import torch
from support.evaluation import RECORDS, RandomEdit
from support.families import KINDS, SENTENCES

from tl_rome.counterfact.experiments.restored import restored
from tl_rome.counterfact.experiments.sequential import COUNTS, sequential_edits
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.editors import FT, R_ROME, RELEASED, FineTune, Rome, SharedValues, compose
from tl_rome.editors.covariance.estimation import estimate_covariance
from tl_rome.editors.edits.receipts.outcome import probe_model
from tl_rome.errors import InputError, NumericsError, StorageError
from tl_rome.running.matrices import w_out
from tl_rome.scoring import score_targets

KIND = KINDS[0]
TUNED = FineTune(0, replace(FT, max_steps=6, learning_rate=0.02))


def written(model, editor, counts=(1, 3), records=RECORDS, **options):
    return sequential_edits(model, records, editor, counts, progress=False, **options)


def weights(model):
    return [w_out(model, layer).detach().clone() for layer in range(model.cfg.n_layers)]


def same(model, before):
    return all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))


def rome(model, config=RELEASED, **more):
    covariance = estimate_covariance(model, 1, SENTENCES, source="sentences", progress=False)
    return Rome(covariance, ("", "He said that. "), replace(config, max_evaluations=4), **more)


def plainly(model, editor, count):
    """ES and plain sentences after the first edits, each made by hand in the weights that those before left."""
    edits = []
    for record in RECORDS[:count]:
        edit = editor(model, record.request)
        edit.apply(model)
        edits.append(edit)
    hits = []
    for record in RECORDS[:count]:
        rewrite = record.requested_rewrite
        prompts, targets = [record.request.fact.prompt] * 2, [rewrite.target_new.str, rewrite.target_true.str]
        new, true = score_targets(model, prompts, targets).nll.tolist()
        hits.append(100.0 * (new < true))
    texts = probe_model(model, RECORDS[0].request)
    for edit in reversed(edits):
        edit.undo(model)
    return sum(hits) / count, texts.text_nll, texts.text_entropy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made", [lambda _: TUNED, rome, lambda model: rome(model, R_ROME)], ids=["ft", "rome", "r"])
def test_each_edit_is_made_on_the_model_as_edited_so_far(fresh_tiny, kind, made):
    model = fresh_tiny("gpt2", kind)
    editor, before = made(model), weights(model)
    result = written(model, editor)
    assert same(model, before)
    assert result.curve.x == (1, 3)
    assert result.text_nll[0] == pytest.approx(probe_model(model, RECORDS[0].request).text_nll)
    for place, count in enumerate(result.curve.x):
        es, nll, entropy = plainly(model, editor, int(count))
        assert result.curve.rows[place]["ES"].mean == pytest.approx(es)
        assert result.curve.rows[place]["ES"].n == count
        assert result.text_nll[1 + place] == pytest.approx(nll, rel=1e-5)
        assert result.text_entropy[1 + place] == pytest.approx(entropy, rel=1e-5)
    assert result.text_nll[2] != pytest.approx(result.text_nll[0], rel=1e-4)


def test_values_shared_with_the_unedited_model_are_not_used(fresh_tiny):
    model = fresh_tiny("gpt2", KIND)
    shared = SharedValues()
    editor = rome(model, find_values=shared)
    editor.each(model, [record.request for record in RECORDS[:3]])
    assert written(model, editor).text_nll == written(model, rome(model)).text_nll
    assert editor.find_values is shared


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_weights_as_they_were(fresh_tiny, error):
    model = fresh_tiny("gpt2", KIND)
    before, made = weights(model), []

    def editor(model, request):
        if len(made) == 2:
            raise error
        made.append(RandomEdit(layer=len(made))(model, request))
        return made[-1]

    with pytest.raises(error):
        written(model, editor)
    assert len(made) == 2
    assert same(model, before)
    assert not any(edit.is_applied(model) for edit in made)


def test_restored_in_bfloat16_with_several_edits_of_a_layer(fresh_tiny):
    model = fresh_tiny("gpt2", KIND, torch.bfloat16)
    before = weights(model)
    with restored(model) as edited:
        for record in RECORDS:
            edited.write(compose([RandomEdit()(model, record.request)]))
        assert not torch.equal(w_out(model, 1), before[1])
    assert same(model, before)


def test_an_interrupted_run_continues_with_the_edits_it_has(fresh_tiny, tmp_path):
    model, left = fresh_tiny("gpt2", KIND), [3]

    class Stopping(FineTune):
        def each(self, model, requests, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return super().each(model, requests, **options)

    editor = Stopping(0, TUNED.config)
    whole = written(model, TUNED, (1, 2, 5), name="ft")
    with pytest.raises(KeyboardInterrupt):
        written(model, editor, (1, 2, 5), name="ft", store=tmp_path)
    assert len(list((tmp_path / "edits").iterdir())) == 3
    left[0] = 2
    assert written(model, editor, (1, 2, 5), name="ft", store=tmp_path) == whole
    assert written(model, editor, (2, 5), name="ft", store=tmp_path).curve.rows == whole.curve.rows[1:]
    assert left == [0]
    with pytest.raises(StorageError, match="made with editor"):
        written(model, TUNED, (1, 2, 5), store=tmp_path)
    with pytest.raises(StorageError, match="made with dataset"):
        written(model, editor, (1, 2), store=tmp_path)


def test_a_fact_that_cannot_be_edited_is_scored_as_it_is(tiny, caplog):
    refused = RECORDS[1].request.subject
    result = written(tiny("gpt2", KIND), RandomEdit(refused=(refused,)))
    assert result.failed == {7: f"NumericsError: no edit of {refused}"}
    assert result.curve.rows[1]["ES"].n == 3
    assert "no edit of record 7" in caplog.text
    assert result.grid().caption.endswith("1 edits could not be made")


def test_a_model_whose_scores_are_not_finite_ends_the_run(fresh_tiny):
    model = fresh_tiny("gpt2", KIND)
    before = weights(model)
    with pytest.raises(NumericsError, match="not finite"):
        written(model, RandomEdit(strength=1e38), (3,))
    assert same(model, before)


def test_summary_of_the_unedited_model_stands_first(tiny):
    result = written(tiny("gpt2", KIND), RandomEdit(strength=0.0))
    assert result.curve.unedited["ES"] == result.curve.rows[-1]["ES"], "edits that change nothing"
    assert [row[0] for row in result.grid().rows] == ["unedited", "1", "3"]
    assert result.grid().header == ("facts", "n", "S", "ES", "PS", "NS", "text NLL", "entropy", "|dW|/|W|")


def test_a_result_can_be_kept_as_json(tiny):
    result = written(tiny("gpt2", KIND), RandomEdit(refused=(RECORDS[0].request.subject,)), name="random")
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = SequentialResult.from_dict(json.loads(text))
    assert again.to_dict() == result.to_dict()
    assert again.grid() == result.grid()
    with pytest.raises(StorageError, match="damaged"):
        SequentialResult.from_dict({})


@pytest.mark.parametrize("counts", [(), (0,), (1, 6), COUNTS])
def test_impossible_counts_are_refused(tiny, counts):
    with pytest.raises(InputError, match=r"from 1 to 5|counts\[0\] is 0; give a number of at least 1"):
        written(tiny("gpt2", KIND), TUNED, counts)


def test_records_with_one_number_are_refused(tiny):
    with pytest.raises(InputError, match="1 case_ids of 2 records"):
        written(tiny("gpt2", KIND), TUNED, (1,), [RECORDS[0], RECORDS[0]])
