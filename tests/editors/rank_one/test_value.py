from dataclasses import replace

import pytest
import torch
from support.compare import relative_error
from support.edits import CONTEXTS, LAYER, REQUEST
from support.families import FAMILY_KINDS, KINDS

from tl_rome.editors import RELEASED
from tl_rome.editors.rank_one.batch import RewriteBatch
from tl_rome.editors.rank_one.key import chosen_keys
from tl_rome.editors.rank_one.value import optimise_value, optimise_values
from tl_rome.errors import InputError, NumericsError, SubjectError
from tl_rome.facts import Fact
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import value_hook
from tl_rome.tokens import encode_fact, encode_target

KIND = KINDS[0]
TWO_TOKENS = Fact("The headquarters of {} is in", "Siemens", "Copenhagen Lisbon")
SHORT = replace(RELEASED, max_evaluations=6)
MANY = [
    REQUEST.fact,
    TWO_TOKENS,
    Fact("{} is located in the city of", "Big Ben", "Rome"),
    Fact("Visitors say that {} has a view of the city of", "The Blue Mosque", "Paris"),
]
"""Prompts of different lengths, subjects at the beginning and inside, targets of one token and of several."""


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

        with hooked(model, [value_hook(model, layer, add)]):
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
@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_equals_the_plain_definition(tiny, family, kind, fact):
    model = tiny(family, kind)
    found = optimise_value(model, LAYER, fact, CONTEXTS, SHORT)
    value, losses = plain_value(model, LAYER, fact, CONTEXTS, SHORT)
    assert len(found.losses) == len(losses) > 3
    assert [step["loss"] for step in found.losses] == pytest.approx(losses, rel=2e-3)
    assert found.losses[0]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert (found.value - value).norm() < 1e-3 * value.norm()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("config", [SHORT, replace(SHORT, sum_token_nll=True, optimiser="gradient_descent")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_many_at_once_equal_one_by_one(tiny, family, kind, config):
    model = tiny(family, kind)
    alone = [optimise_value(model, LAYER, fact, CONTEXTS, config) for fact in MANY]
    for together in (
        optimise_values(model, LAYER, MANY, CONTEXTS, config),
        optimise_values(model, LAYER, MANY, CONTEXTS, config, max_batch_tokens=70),
    ):
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found.initial, expected.initial, rtol=1e-4, atol=1e-5)
            assert (found.value - expected.value).norm() < 1e-3 * expected.value.norm()
            for left, right in zip(found.losses, expected.losses, strict=True):
                assert left == pytest.approx(right, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_padded_on_the_right_alone(tiny, kind):
    model, facts = tiny("llama", kind), [REQUEST.fact, Fact("{} is in", REQUEST.subject, "Rome")]
    for fact, found in zip(facts, optimise_values(model, LAYER, facts, ("",), SHORT), strict=True):
        alone = optimise_value(model, LAYER, fact, ("",), SHORT)
        assert (found.value - alone.value).norm() < 1e-3 * alone.value.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_ends_early_leaves_and_the_others_go_on(tiny, kind):
    model = tiny("llama", kind)
    losses = [[step["loss"] for step in found.losses] for found in optimise_values(model, LAYER, MANY, CONTEXTS, SHORT)]
    config = replace(SHORT, stop_loss=sorted(loss[3] for loss in losses)[1] * 1.001)
    found = optimise_values(model, LAYER, MANY, CONTEXTS, config)
    counts = [len(value.losses) for value in found]
    assert min(counts) < max(counts) == config.max_evaluations
    for fact, value, count in zip(MANY, found, counts, strict=True):
        alone = optimise_value(model, LAYER, fact, CONTEXTS, config)
        assert len(alone.losses) == count
        assert (value.value - alone.value).norm() < 1e-3 * alone.value.norm()


def test_batches_keep_to_their_bound(tiny, monkeypatch):
    model, sizes, needed = tiny("llama", KIND), [], []
    make = RewriteBatch.make

    def spy(model, rewrites):
        batch = make(model, rewrites)
        sizes.append((len(rewrites), batch.tokens.shape[0] * (batch.tokens.shape[1] - batch.start)))
        needed.append(sum(len(rewrite.rows) * rewrite.positions for rewrite in rewrites))
        return batch

    monkeypatch.setattr("tl_rome.editors.rank_one.value.RewriteBatch.make", spy)
    for bound in (1, 70, 10_000):
        sizes.clear()
        assert len(optimise_values(model, LAYER, MANY, CONTEXTS, SHORT, max_batch_tokens=bound)) == len(MANY)
        assert sum(count for count, _ in sizes) == len(MANY)
        assert all(size <= bound or count == 1 for count, size in sizes)
        assert all(size <= 1.25 * own for (_, size), own in zip(sizes, needed[-len(sizes) :], strict=True))
    assert len(sizes) < len(MANY)
    assert optimise_values(model, LAYER, [], CONTEXTS, SHORT) == []


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_a_batch_are_those_of_runs_of_their_own(tiny, kind):
    model = tiny("llama", kind)
    for fact, value in zip(MANY, optimise_values(model, LAYER, MANY, CONTEXTS, SHORT), strict=True):
        expected = chosen_keys(model, LAYER, fact, CONTEXTS, ["prompt", "contexts"])
        assert value.keys.keys() == expected.keys()
        for choice, key in expected.items():
            assert relative_error(value.keys[choice], key) < 1e-5


def test_where_blocks_cannot_be_run_one_by_one_whole_runs_find_the_same_value(tiny, monkeypatch, caplog):
    model = tiny("llama", KIND)
    expected = optimise_value(model, LAYER, REQUEST.fact, CONTEXTS, RELEASED)
    monkeypatch.setattr(
        "tl_rome.running.blocks.BlockRunner.__call__", lambda self, layer, resid, past, prompts=None: resid * 1.1
    )
    found = optimise_value(model, LAYER, REQUEST.fact, CONTEXTS, RELEASED)
    assert "; running the whole model at each step instead" in caplog.text
    assert [step["loss"] for step in found.losses] == pytest.approx(
        [step["loss"] for step in expected.losses], rel=1e-3
    )
    assert (found.value - expected.value).norm() < 1e-3 * expected.value.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_models_follow_the_same_path(tiny, kind):
    """Delta and its optimiser are float32, so that only the model's own rounding is seen."""
    half, full = (tiny("llama", kind, dtype) for dtype in (torch.bfloat16, torch.float32))
    found, expected = (optimise_value(model, LAYER, REQUEST.fact, CONTEXTS, SHORT) for model in (half, full))
    assert found.value.dtype == torch.float32
    assert [step["nll"] for step in found.losses] == pytest.approx([s["nll"] for s in expected.losses], abs=0.1)


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


@pytest.mark.parametrize("kind", KINDS)
def test_only_targets_that_are_still_unlikely_get_more_evaluations(tiny, kind, monkeypatch):
    model, more = tiny("llama", kind), replace(SHORT, extra_evaluations=3)
    short, long = (
        optimise_values(model, LAYER, MANY, CONTEXTS, replace(SHORT, max_evaluations=most)) for most in (6, 9)
    )
    last = sorted(value.losses[-1]["nll"] for value in short)
    monkeypatch.setattr("tl_rome.editors.rank_one.value._UNWRITTEN", (last[1] + last[2]) / 2)
    hard = [value.losses[-1]["nll"] > last[1] for value in short]
    for value, *others, is_hard in zip(
        optimise_values(model, LAYER, MANY, CONTEXTS, more), short, long, hard, strict=True
    ):
        expected = others[is_hard]
        assert len(value.losses) == len(expected.losses)
        assert (value.value - expected.value).norm() < 1e-3 * expected.value.norm()
    assert sum(hard) == 2


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
    for layer, contexts, fact, message in (
        (99, CONTEXTS, REQUEST.fact, "layer 99 is out of range"),
        (LAYER, (), REQUEST.fact, "no contexts; give"),
        (LAYER, CONTEXTS, Fact("{} is in", "Rome"), "'Rome is in' has no target"),
    ):
        with pytest.raises(InputError, match=message):
            optimise_value(model, layer, fact, contexts, RELEASED)
    with torch.no_grad():
        next(model.blocks[3].parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="loss of v\\* is nan at step 0"):
        optimise_value(model, LAYER, REQUEST.fact, CONTEXTS, RELEASED)
    assert not any(p.requires_grad for p in model.parameters())
