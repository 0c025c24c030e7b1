from dataclasses import replace

import pytest
import torch
from families import FAMILIES, KINDS
from material import CONTEXTS, LAYER, REQUEST

from tl_rome.editors import RELEASED
from tl_rome.editors.value import optimise_value
from tl_rome.errors import NumericsError, SubjectError
from tl_rome.facts import Fact
from tl_rome.sites import value_hook
from tl_rome.tokens import encode_fact, encode_target

KIND = KINDS[0]
TWO_TOKENS = Fact("{} is located in the city of", "The Eiffel Tower", "Copenhagen Lisbon")


def plain_value(model, layer, fact, contexts, config):
    """v* by the definition: every prompt is one unpadded full forward pass in every evaluation."""
    target = encode_target(model, fact.target, fact.prompt)
    prompts = [encode_fact(model, fact, context) for context in contexts]
    essence = encode_fact(model, Fact(config.kl_template, fact.subject))
    initial = []

    def run(tokens, position, delta):
        def add(output):
            if not initial:
                initial.append(output[0, position].detach().clone())
            return output + torch.nn.functional.one_hot(torch.tensor(position), output.shape[1])[None, :, None] * delta

        with value_hook(model, layer, add):
            return model(tokens[None])[0].log_softmax(-1)

    delta = torch.zeros(model.cfg.d_model, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    losses, usual = [], None
    for step in range(config.max_evaluations):
        nll = torch.zeros(())
        for prompt in prompts:
            logprobs = run(torch.cat([prompt.tokens, target[:-1]]), prompt.subject.last, delta)
            rows = logprobs[len(prompt.tokens) - 1 :]
            nll = nll - rows[torch.arange(len(target)), target].mean() / len(prompts)
        now = run(essence.tokens, essence.subject.last, delta)[essence.subject.last]
        usual = now.detach() if usual is None else usual
        kl = (now.exp() * (now - usual)).sum()  # KL(edited || original), as in the released code
        loss = nll + config.kl_factor * kl + config.norm_penalty * delta.norm() / initial[0].norm() ** 2
        losses.append(loss.item())
        if loss < config.stop_loss or step == config.max_evaluations - 1:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            limit = config.clamp * initial[0].norm()
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    return initial[0] + delta.detach(), losses


@pytest.mark.parametrize("fact", [REQUEST.fact, TWO_TOKENS], ids=["one-token", "several-tokens"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_plain_definition(tiny, family, kind, fact):
    model = tiny(family, kind)
    found = optimise_value(model, LAYER, fact, CONTEXTS, RELEASED)
    value, losses = plain_value(model, LAYER, fact, CONTEXTS, RELEASED)
    assert len(found.losses) == len(losses) > 3
    assert [step["loss"] for step in found.losses] == pytest.approx(losses, rel=2e-3)
    assert found.losses[0]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert (found.value - value).norm() < 1e-3 * value.norm()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_found(fresh_tiny, kind):
    model = fresh_tiny("llama", kind)
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(True)
    before = [(p.requires_grad, p.detach().clone()) for p in parameters]
    with torch.no_grad():
        optimise_value(model, LAYER, REQUEST.fact, CONTEXTS, RELEASED)
        assert not torch.is_grad_enabled()
    for parameter, (required, value) in zip(parameters, before, strict=True):
        assert parameter.requires_grad == required
        assert parameter.grad is None
        assert torch.equal(parameter, value)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def test_delta_is_clamped(tiny):
    found = optimise_value(tiny("llama", KIND), LAYER, REQUEST.fact, CONTEXTS, replace(RELEASED, clamp=0.1))
    assert (found.value - found.initial).norm() <= 0.1001 * found.initial.norm()


def test_early_stop(tiny):
    found = optimise_value(tiny("llama", KIND), LAYER, REQUEST.fact, CONTEXTS, replace(RELEASED, stop_loss=100.0))
    assert len(found.losses) == 1
    assert torch.equal(found.value, found.initial)


def test_bad_weights_and_bad_contexts(fresh_tiny):
    model = fresh_tiny("llama", KIND)
    with pytest.raises(SubjectError, match="starts inside the token"):
        optimise_value(model, LAYER, Fact("{}", "ome", "Paris"), ("", "The city of R"), RELEASED)
    with torch.no_grad():
        next(model.blocks[3].parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="loss of v\\* is nan at step 0"):
        optimise_value(model, LAYER, REQUEST.fact, CONTEXTS, RELEASED)
    assert not any(p.requires_grad for p in model.parameters())
