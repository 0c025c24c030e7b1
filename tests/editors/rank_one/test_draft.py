"""The draft preset against its text: key of the bare subject, NLL of one prompt, gradient descent, exact storage."""

from dataclasses import replace

import pytest
import torch
from support.edits import LAYER, REQUEST, covariance
from support.families import FAMILY_KINDS, KINDS

from tl_rome.editors import DRAFT, Rome
from tl_rome.editors.rank_one.key import chosen_keys
from tl_rome.editors.rank_one.value import optimise_value
from tl_rome.facts import Fact
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import b_out, key_hook, value_hook, w_out
from tl_rome.scoring import score_targets
from tl_rome.tokens import encode, encode_fact, encode_target

KIND = KINDS[0]
TWO_TOKENS = Fact(REQUEST.template, REQUEST.subject, "Copenhagen Lisbon")


def test_key_is_that_of_the_bare_subject(tiny):
    model = tiny("llama", KIND)
    seen = []
    model.run_with_hooks(
        encode(model, REQUEST.subject)[None], fwd_hooks=[(key_hook(LAYER), lambda value, hook: seen.append(value))]
    )
    found = chosen_keys(model, LAYER, REQUEST.fact, ("",), ["subject", "prompt"])
    torch.testing.assert_close(found["subject"].float(), seen[0][0, -1], rtol=1e-5, atol=1e-6)
    inside = replace(REQUEST, template="People say that {} is in").fact
    other = chosen_keys(model, LAYER, inside, ("",), ["subject", "prompt"])
    assert torch.equal(other["subject"], found["subject"])
    assert not torch.allclose(other["prompt"], found["prompt"])


@pytest.mark.parametrize("fact", [REQUEST.fact, TWO_TOKENS], ids=["one-token", "several-tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_is_that_of_plain_gradient_descent(tiny, kind, fact):
    model = tiny("gpt2", kind)
    config = replace(DRAFT, learning_rate=0.3, max_evaluations=6)
    prompt, target = encode_fact(model, fact), encode_target(model, fact.target, fact.prompt)
    tokens = torch.cat([prompt.tokens, target[:-1]])[None]
    seen = []
    with hooked(model, [value_hook(model, LAYER, seen.append)]):
        model(tokens)
    place = torch.zeros(tokens.shape[1], 1)
    place[prompt.subject.last] = 1
    z = seen[0][0, prompt.subject.last].clone().requires_grad_(True)
    losses = []
    for _ in range(config.max_evaluations):
        with hooked(model, [value_hook(model, LAYER, lambda output, z=z: output * (1 - place) + z * place)]):
            logprobs = model(tokens)[0, len(prompt.tokens) - 1 :].log_softmax(-1)
        loss = -logprobs[torch.arange(len(target)), target].sum()
        losses.append(loss.item())
        if len(losses) < config.max_evaluations:
            (gradient,) = torch.autograd.grad(loss, z)
            z = (z - config.learning_rate * gradient).detach().requires_grad_(True)
    found = optimise_value(model, LAYER, fact, ("",), config)
    assert [step["loss"] for step in found.losses] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(found.value, z.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_edit_stores_the_value_exactly_and_raises_the_target(tiny, family, kind):
    model = tiny(family, kind)
    config = replace(DRAFT, max_evaluations=6)
    editor = Rome.prepare(model, covariance=covariance(model), config=config)
    assert editor.contexts == ("",)
    edit = editor(model, REQUEST)
    key = chosen_keys(model, LAYER, REQUEST.fact, ("",), ["subject"])["subject"]
    value = optimise_value(model, LAYER, REQUEST.fact, ("",), config).value.double()
    stored = w_out(model, LAYER).double() + edit.updates[0].delta
    torch.testing.assert_close(key @ stored + b_out(model, LAYER).double(), value, rtol=1e-6, atol=1e-6)
    with edit.applied(model):
        after = score_targets(model, [REQUEST.fact.prompt], ["Rome"]).prob.item()
    assert edit.receipt.prob_new[1] == pytest.approx(after, rel=1e-5)
    assert after > edit.receipt.prob_new[0]
    assert edit.receipt.divisor_ratio == pytest.approx(1)
    assert edit.receipt.contexts_choice == "the prompt alone"
