"""Requests that are unusual but meant: repeated, shared or foreign subjects, long and short targets, interruptions."""

from dataclasses import replace

import pytest
import torch
from support.compare import same, weights
from support.edits import CONTEXTS, LAYER, REQUEST, covariance, editor
from support.families import FAMILY_KINDS, KINDS

from tl_rome.editors import P_ROME, R_ROME, Rome
from tl_rome.errors import InputError
from tl_rome.facts import EditRequest
from tl_rome.scoring import score_targets
from tl_rome.tokens import encode_target

KIND = KINDS[0]
LOCATED = "{} is located in the city of"


@pytest.fixture
def ready(tiny):
    """A step that suits the small vectors of a tiny model."""
    return Rome(covariance(tiny("gpt2", KIND)), ("",), replace(P_ROME, learning_rate=0.1))


def prob(model, request):
    return score_targets(model, [request.fact.prompt], [request.target_new]).prob.item()


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_bfloat16_models_are_edited_and_restored(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind, torch.bfloat16)
    before = weights(model)
    edit = editor(model)(model, REQUEST)
    assert same(weights(model), before)
    with edit.applied(model):
        assert weights(model)[LAYER].dtype == torch.bfloat16
        after = prob(model, REQUEST)
    assert after > edit.receipt.prob_new[0]
    assert same(weights(model), before)


@pytest.mark.parametrize("target", ["Rome", "Copenhagen Lisbon Vienna Ankara"], ids=["one token", "eight or more"])
def test_short_and_long_targets(tiny, ready, target):
    model = tiny("gpt2", KIND)
    length = len(encode_target(model, target, REQUEST.fact.prompt))
    assert length == 1 or length >= 8
    edit = ready(model, EditRequest(LOCATED, REQUEST.subject, target))
    before, after = edit.receipt.prob_new
    assert after > 2 * before


@pytest.mark.parametrize(
    "subject", ["La Sagrada Família", "Søren Kierkegaard", "富士山", "東京タワー", "🗼", "☕ Café Zürich", "Ωραίο Ψωμί"]
)
def test_accents_foreign_scripts_and_emoji(tiny, ready, subject):
    model = tiny("gpt2", KIND)
    edit = ready(model, EditRequest(LOCATED, subject, "Rome"))
    assert edit.receipt.prob_new[1] > edit.receipt.prob_new[0]
    middle = ready(model, EditRequest("People know that {} stands in", subject, "Rome"))
    assert middle.receipt.prob_new[1] > middle.receipt.prob_new[0]


def test_a_subject_in_mid_sentence(tiny, ready):
    model = tiny("gpt2", KIND)
    edit = ready(model, EditRequest("In 1889 people said that {}, a tower, is located in", "The Eiffel Tower", "Rome"))
    assert edit.receipt.prob_new[1] > edit.receipt.prob_new[0]


def test_a_very_long_prompt_fits_up_to_the_context(tiny, ready):
    model = tiny("gpt2", KIND)
    long = EditRequest("He said that it is so. " * 8 + LOCATED, REQUEST.subject, "Rome")
    edit = ready(model, long)
    assert edit.receipt.prob_new[1] > edit.receipt.prob_new[0]
    with pytest.raises(InputError, match="the model's context only 128; shorten the text"):
        ready(model, EditRequest("He said that it is so. " * 40 + LOCATED, REQUEST.subject, "Rome"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_fact_twice_needs_no_second_change(fresh_tiny, kind):
    """On top of the first edit the target is already likely, so the second one is small and harmless."""
    model = fresh_tiny("gpt2", kind)
    ready = Rome(covariance(model), CONTEXTS, R_ROME)
    first = ready(model, REQUEST)
    before = weights(model)
    with first.applied(model):
        second = ready(model, REQUEST)
        with second.applied(model):
            twice = prob(model, REQUEST)
    assert twice > 0.8 * first.receipt.prob_new[1]
    assert second.receipt.final_loss <= first.receipt.final_loss + 0.05
    assert same(weights(model), before)


def test_one_edit_object_made_twice_is_bit_for_bit_the_same(tiny, ready):
    model = tiny("gpt2", KIND)
    left, right = ready(model, REQUEST), ready(model, REQUEST)
    assert torch.equal(left.updates[0].left[:, 0], right.updates[0].left[:, 0])
    assert torch.equal(left.updates[0].right[:, 0], right.updates[0].right[:, 0])


def test_two_facts_on_one_subject(fresh_tiny):
    model = fresh_tiny("gpt2", KIND)
    ready = Rome(covariance(model), CONTEXTS, P_ROME)
    where = EditRequest(LOCATED, "Big Ben", "Rome")
    language = EditRequest("The native language of {} is", "Big Ben", "Danish")
    before = {request: prob(model, request) for request in (where, language)}
    with ready(model, where).applied(model):
        second = ready(model, language)
        with second.applied(model):
            assert prob(model, language) > 2 * before[language]
    assert prob(model, where) == pytest.approx(before[where], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["value", "measure before", "measure after"])
def test_ctrl_c_inside_an_edit_leaves_the_model_as_it_was(fresh_tiny, monkeypatch, kind, moment):
    model = fresh_tiny("llama", kind)
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(True)
    ready = editor(model)
    before = [(p.detach().clone(), p.requires_grad) for p in model.parameters()]
    if moment == "value":

        class Interrupted(torch.optim.Adam):
            def step(self, closure=None):
                raise KeyboardInterrupt

        monkeypatch.setattr(torch.optim, "Adam", Interrupted)
    else:

        def probe(*args, **options):
            raise KeyboardInterrupt

        place = {"measure before": "rank_one.editor.probe_requests", "measure after": "edits.finish.probe_model"}
        monkeypatch.setattr(f"tl_rome.editors.{place[moment]}", probe)
    with pytest.raises(KeyboardInterrupt):
        ready(model, REQUEST)
    for parameter, (value, required) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == required
        assert parameter.grad is None
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
