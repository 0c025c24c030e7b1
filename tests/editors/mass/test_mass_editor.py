"""Whole mass edits of tiny models, against runs of the whole model with the weights written, and what is refused."""

from dataclasses import replace

import pytest
import torch
from support.compare import same, weights
from support.edits import CONTEXTS, REQUEST
from support.families import FAMILIES, KINDS, SENTENCES
from support.mass import BIG_BEN, CURIE, LAYERS, REQUESTS, at_subject, editor, statistics, subject_states

from tl_rome.editors import (
    ALPHAEDIT,
    EMMET,
    MEMIT,
    MEMIT_SEQ,
    PMET,
    R_ROME,
    BatchEdit,
    EditSequence,
    KeyCovariance,
    KeyMemory,
    MassEditor,
    Rome,
    SharedValues,
    compose,
    estimate_covariances,
)
from tl_rome.editors.mass.requests import alike_warning
from tl_rome.editors.mass.sweeps.choice import sweep_layers
from tl_rome.editors.rank_one.value import optimise_values
from tl_rome.errors import EditStateError, InputError, ModelMismatchError, SubjectError, UnsupportedModelError
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import key_hook, w_out

KIND = KINDS[0]
TOWER_TOO = EditRequest("Visitors of {} speak", "The Eiffel Tower", "Italian")
FAMILY_KINDS = [(family, kind) for family in FAMILIES if family != "gemma2" for kind in KINDS]


def plain_memit(model, requests, deltas, covariances, weight):
    """MEMIT by its definition: each prompt run alone, inverses, weights written; they stay as this leaves them."""
    last, changes = max(covariances), []
    wanted = subject_states(model, requests, last) + deltas
    for index, layer in enumerate(sorted(covariances)):
        rows = [[at_subject(model, request, prefix, key_hook(layer)) for prefix in CONTEXTS] for request in requests]
        keys = torch.stack([(row[0] + sum(row[1:]) / (len(row) - 1)) / 2 for row in rows], 1)
        residual = (wanted - subject_states(model, requests, last)) / (len(covariances) - index)
        prior = weight * covariances[layer].second_moment
        delta = torch.linalg.inv(prior + keys @ keys.T) @ keys @ residual
        with torch.no_grad():
            w_out(model, layer).add_(delta.float())
        changes.append(delta)
    left = (wanted - subject_states(model, requests, last)).norm(dim=1) / deltas.norm(dim=1)
    return changes, left.tolist()


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_a_batch_is_that_of_whole_runs(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    made, before = editor(model), weights(model)
    edit = made(model, REQUESTS)
    assert same(weights(model), before)
    found = optimise_values(model, 2, [request.fact for request in REQUESTS], CONTEXTS, made.config)
    deltas = torch.stack([value.delta for value in found]).double()
    weight = float(len(made.covariances[1].second_moment))
    changes, left = plain_memit(model, REQUESTS, deltas, made.covariances, weight)
    for update, expected in zip(edit.updates, changes, strict=True):
        assert float((update.delta - expected).norm() / expected.norm()) < 1e-3
    assert [fact.residual_left for fact in edit.receipt.facts] == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize(("family", "kind"), [*(("llama", kind) for kind in KINDS), ("gptj", KIND)])
def test_one_layer_one_fact_and_no_weight_is_r_rome(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    covariances = statistics(model, (1,))
    settings = {name: getattr(R_ROME, name) for name in ("clamp", "norm_penalty", "kl_factor", "max_evaluations")}
    config = replace(MEMIT, value_site="w_out", key_weighting="flat", covariance_weight=0.0, **settings)
    found = MassEditor.prepare(model, config=config, covariances=covariances, contexts=CONTEXTS, layers=[1])
    edit = found(model, REQUEST)
    expected = Rome(covariances[1], CONTEXTS, R_ROME)(model, REQUEST).updates[0].delta
    assert float((edit.updates[0].delta - expected).norm() / expected.norm()) < 1e-5
    emmet = editor(model, EMMET, (1,))
    alone = editor(model, MEMIT, (1,), covariance_weight=0.0)(model, REQUEST)
    assert torch.equal(emmet(model, REQUEST).updates[0].delta, alone.updates[0].delta)


def test_models_that_normalise_what_an_mlp_adds_are_refused(tiny):
    model = tiny("gemma2", KIND)
    with pytest.raises(UnsupportedModelError, match="normalised or scaled before it joins the residual stream"):
        editor(model)(model, REQUEST)


def test_an_edit_is_kept_applied_and_composed_as_any_other(fresh_tiny, tmp_path):
    model = fresh_tiny("llama", KIND)
    made, before = editor(model), weights(model)
    edit = made(model, REQUESTS)
    loaded = BatchEdit.load(edit.save(tmp_path / "edit.safetensors"), model)
    assert (loaded.receipt, loaded.requests, loaded.digests) == (edit.receipt, edit.requests, edit.digests)
    with loaded.applied(model):
        for update in edit.updates:
            expected = before[update.layer].double() + update.delta
            torch.testing.assert_close(w_out(model, update.layer).double(), expected, rtol=1e-6, atol=1e-6)
        made(model, CURIE)  # on top of the first; without a memory that is no error
        with pytest.raises(EditStateError, match="already applied"):
            edit.apply(model)
    assert same(weights(model), before)
    single = Rome(made.covariances[1], CONTEXTS)(model, REQUEST)
    path = compose([edit, single]).save(tmp_path / "both.safetensors")
    both = EditSequence.load(path)
    assert [type(part) for part in both.edits] == [BatchEdit, type(single)]


def test_edits_made_together_are_those_made_alone(tiny):
    model = tiny("gptj", KIND)
    made = editor(model)
    for request, found in zip(REQUESTS, made.each(model, REQUESTS), strict=True):
        for update, expected in zip(found.updates, made(model, request).updates, strict=True):
            torch.testing.assert_close(update.delta, expected.delta, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("config", [MEMIT_SEQ, ALPHAEDIT], ids=lambda config: config.preset)
def test_a_memory_is_handed_on_and_undoing_means_the_one_before(fresh_tiny, tmp_path, config):
    model = fresh_tiny("llama", KIND)
    made = editor(model, config)
    empty = KeyMemory.empty(model, LAYERS)
    first, memory = made(model, [REQUEST, CURIE], memory=empty)
    assert (empty.facts, memory.facts, first.receipt.earlier) == (0, 2, 0)
    with pytest.raises(EditStateError, match="is not as the 2 facts of this key memory left it"):
        made(model, BIG_BEN, memory=memory)
    first.apply(model)
    memory = KeyMemory.load(memory.save(tmp_path / "memory.safetensors"), model)
    second, later = made(model, BIG_BEN, memory=memory)
    assert (later.facts, second.receipt.earlier) == (3, 2)
    assert not torch.equal(second.updates[0].delta, made(model, BIG_BEN).updates[0].delta)
    second.apply(model)
    second.undo(model)
    again, _ = made(model, BIG_BEN, memory=memory)
    assert torch.equal(again.updates[0].delta, second.updates[0].delta)
    for layer in LAYERS:
        assert torch.equal(later.moments[layer], later.moments[layer].T)


def test_memories_of_something_else_are_refused(tiny):
    model, other = tiny("llama", KIND), tiny("gptj", KIND)
    with pytest.raises(ModelMismatchError, match="the key memory belongs to the model"):
        editor(model, MEMIT_SEQ)(model, REQUEST, memory=KeyMemory.empty(other, LAYERS))
    with pytest.raises(InputError, match=r"of layers \(1,\), the editor edits \(1, 2\)"):
        editor(model, MEMIT_SEQ)(model, REQUEST, memory=KeyMemory.empty(model, [1]))
    with pytest.raises(InputError, match="'memit' keeps no key memory"):
        editor(model)(model, REQUEST, memory=KeyMemory.empty(model, LAYERS))


def test_requests_are_looked_at_before_the_work(tiny, caplog):
    model = tiny("llama", KIND)
    made = editor(model)
    with pytest.raises(InputError, match="occurs twice"):
        made(model, [REQUEST, CURIE, REQUEST])
    with pytest.raises(InputError, match=r"contradict each other: 'The Eiffel Tower .* -> 'Rome' and -> 'Berlin'"):
        made(model, [REQUEST, replace(REQUEST, target_new="Berlin")])
    with pytest.raises(InputError, match="give at least one fact"):
        made(model, [])
    edit = made(model, [REQUEST, TOWER_TOO])
    assert "'The Eiffel Tower' (2)" in caplog.text
    assert any("end half written" in warning for warning in edit.receipt.warnings)


def test_facts_that_cannot_be_written_are_named_before_any_work(tiny):
    def optimise(*_, **__):
        raise AssertionError("this is work")

    model = tiny("gpt2", KIND)
    made = replace(editor(model), find_values=optimise)
    inside, too = EditRequest("{}le is in", "The Space Need", "Rome"), EditRequest("{}ly is in", "Sici", "Rome")
    with pytest.raises(SubjectError, match=r"2 of 4 requests .* 'The Space Need' ends inside .*: 'Sicily is in'"):
        made(model, [REQUEST, inside, CURIE, too])
    with pytest.raises(SubjectError, match=r"^subject 'The Space Need' ends inside"):
        made(model, [REQUEST, inside])


def test_facts_with_nearly_one_key_are_named():
    moment = torch.diag(torch.tensor([1e6, 1, 1], dtype=torch.float64))
    covariance = KeyCovariance(moment, 1, 1000, "numbers", False, "")
    alike = torch.tensor([[0, 300, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)  # only once they are whitened
    warning = alike_warning(REQUESTS, covariance, alike)
    first, second, third = (request.fact.prompt for request in REQUESTS)
    assert f"{first!r} and {second!r}; write them" in warning
    assert third not in warning
    of_one_subject = alike_warning([REQUEST, TOWER_TOO, CURIE], covariance, alike)  # which is said before
    assert of_one_subject is None
    unlike = torch.tensor([[1000, 1000, 1000], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)  # only before
    assert alike_warning(REQUESTS, covariance, unlike) is None


def test_doubts_about_a_fact_or_the_statistics_are_in_the_receipt(tiny):
    model = tiny("gpt2", KIND)
    first = EditRequest("{} is located in the city of", "Paris", "Rome")
    receipt = editor(model, ALPHAEDIT)(model, [CURIE, first]).receipt
    assert not any("attention sink" in warning for warning in receipt.facts[0].warnings)
    assert any("'Paris' is the first token of the text" in warning for warning in receipt.facts[1].warnings)
    assert any("too few to know which of" in warning for warning in receipt.warnings)


def test_a_batch_larger_than_memory_is_run_in_smaller_parts(tiny, caplog, monkeypatch):
    model = tiny("llama", KIND)
    made = replace(editor(model), find_values=SharedValues())
    expected, bounds = made(model, REQUESTS), []

    def full(model, *args, max_batch_tokens, **options):
        bounds.append(max_batch_tokens)
        if max_batch_tokens > 64:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")
        return sweep_layers(model, *args, max_batch_tokens=max_batch_tokens, **options)

    monkeypatch.setattr("tl_rome.editors.mass.batch.sweep_layers", full)
    monkeypatch.setattr("tl_rome.editors.mass.batch.fitting_tokens", lambda *args: 200)
    found = made(model, REQUESTS)
    assert bounds == [200, 100, 50]
    assert "out of memory with 100 tokens of the batch at once; going on with 50" in caplog.text
    for update, other in zip(found.updates, expected.updates, strict=True):
        torch.testing.assert_close(update.delta, other.delta, rtol=1e-3, atol=1e-6)
    monkeypatch.setattr("tl_rome.editors.mass.batch.fitting_tokens", lambda *args: 128)
    monkeypatch.setattr("tl_rome.editors.mass.batch._LEAST_TOKENS", 128)
    before = weights(model)
    with pytest.raises(torch.OutOfMemoryError):
        made(model, REQUESTS)
    assert same(weights(model), before)


def test_facts_of_one_subject_get_one_delta_and_one_key(tiny):
    model = tiny("llama", KIND)
    made = editor(model, merge_subjects=True)
    edit = made(model, [REQUEST, CURIE, TOWER_TOO])
    assert [layer.facts for layer in edit.receipt.layers] == [2, 2]
    assert len(edit.receipt.facts) == 3
    joint = optimise_values(model, 2, [(REQUEST.fact, TOWER_TOO.fact)], CONTEXTS, made.config)[0]
    alone = [optimise_values(model, 2, [x.fact], CONTEXTS, made.config)[0] for x in (REQUEST, TOWER_TOO)]
    first = [value.losses[0]["nll"] for value in (joint, *alone)]
    assert first[0] == pytest.approx((first[1] + first[2]) / 2, rel=1e-5)


def test_statistics_have_to_be_of_the_layers(tiny):
    model = tiny("llama", KIND)
    with pytest.raises(InputError, match=r"no key statistics of layer 2 \(only of 1\)"):
        MassEditor.prepare(model, covariances=statistics(model, [1]), layers=LAYERS, contexts=CONTEXTS)
    few = estimate_covariances(model, [1], SENTENCES[:1], source="one", progress=False)
    with pytest.raises(Exception, match="singular after"):
        MassEditor.prepare(model, covariances=few, layers=[1], contexts=CONTEXTS)(model, REQUEST)


def test_values_are_found_once_for_editors_that_share_them(tiny, monkeypatch):
    model, asked = tiny("llama", KIND), []

    def counting(model, layer, facts, *args, **options):
        asked.extend([(facts, layer, args[0], args[1].value_settings)] if facts else [])
        return optimise_values(model, layer, facts, *args, **options)

    monkeypatch.setattr("tl_rome.editors.rank_one.shared_values.optimise_values", counting)
    values = SharedValues()
    for config in (MEMIT, ALPHAEDIT, replace(MEMIT, covariance_weight=1.0), EMMET):
        replace(editor(model, config), find_values=values)(model, REQUEST)
    assert len(asked) == 1, asked
    replace(editor(model, PMET), find_values=values)(model, REQUEST)
    assert len(asked) == 2
