"""Attribution patching is the first-order part of what patching does."""

from typing import Any

import pytest
import torch
from support.compare import Found, relative_error
from support.families import FAMILY_KINDS, KINDS
from support.traces import FACT, NOISE, trace

from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching import AddedNoise, LogitDifference, TraceConfig, attribution, attribution_trace, measure_agreement

each_kind = pytest.mark.parametrize("kind", KINDS)


def attribute(model, component, *, fact=FACT, seed=0, asked: Any = None, **settings) -> Any:
    config = TraceConfig(**{"corruption": NOISE, "window": 1, **settings})
    draws = torch.Generator().manual_seed(seed)
    return attribution_trace(model, fact, component, config, generator=draws, metric=asked)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
@pytest.mark.parametrize(
    ("component", "direction"),
    [("resid_post", "denoising"), ("resid_post", "noising"), ("mlp_out", "noising"), ("attn.hook_z", "denoising")],
)
def test_small_corruptions_are_explained_by_the_gradient(tiny, family, kind, component, direction):
    model = tiny(family, kind, torch.float64)
    noise = AddedNoise(2e-4 * torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(1)).double())
    options = {"corruption": noise, "direction": direction, "metric": "logprob", "window": 1}
    exact = trace(model, component, **options)
    found = attribute(model, component, **options)
    assert exact.effects.abs().max() > 1e-8
    assert relative_error(found.effects, exact.effects) < 0.05
    assert found.clean_score == pytest.approx(exact.clean_score, rel=1e-9)


@each_kind
def test_windows_add_up_and_units_split(tiny, kind):
    model = tiny("gpt2", kind, torch.float64)
    single, wide = attribute(model, "mlp_out"), attribute(model, "mlp_out", window=3)
    torch.testing.assert_close(wide.effects[1], single.effects[0:3].sum(0))
    heads = attribute(model, "attn.hook_z", units="heads")
    torch.testing.assert_close(heads.effects.sum(-1), attribute(model, "attn.hook_z").effects)


@each_kind
@pytest.mark.parametrize(("component", "window"), [("resid_post", 1), ("mlp_out", 2)])
def test_each_of_several_metrics_is_as_if_alone_from_one_forward_pass(tiny, kind, component, window, monkeypatch):
    model, passes, run = tiny("gpt2", kind), [], attribution.run
    monkeypatch.setattr(attribution, "run", lambda *given: passes.append(1) or run(*given))
    metrics = {"P": "prob", "log P": "logprob", "difference": LogitDifference(3, 5), "mean": lambda x: x.mean()}
    found = attribute(model, component, window=window, asked=metrics)
    assert len(passes) == 1
    assert list(found) == list(metrics)
    for name, result in found.items():
        alone = attribute(model, component, window=window, metric=metrics[name])
        assert torch.equal(result.scores, alone.scores)
        assert (result.clean_score, result.corrupted_score) == (alone.clean_score, alone.corrupted_score)
        assert (result.metric, result.method) == (alone.metric, "attribution")
    listed = attribute(model, component, window=window, asked=["logprob", "prob"])
    assert [result.metric for result in listed] == ["logprob", "prob"]
    assert torch.equal(listed[1].scores, found["P"].scores)
    with pytest.raises(InputError, match="there are no metrics"):
        attribute(model, component, asked=[])


@each_kind
def test_agreement_with_the_exact_trace(tiny, kind):
    model = tiny("gpt2", kind)
    found, exact = attribute(model, "mlp_out"), trace(model, "mlp_out", window=1)
    measured = measure_agreement(found, exact)
    start = exact.subject.start
    pairs = torch.stack([found.effects[:, start:].flatten(), exact.effects[:, start:].flatten()])
    assert measured.pearson == pytest.approx(torch.corrcoef(pairs)[0, 1].item(), rel=1e-6)
    assert -1 <= measured.spearman <= 1
    assert measured.cells == pairs.shape[1]
    assert str(measured).startswith("Pearson")
    assert measure_agreement(found, found).spearman == pytest.approx(1)
    with pytest.raises(InputError, match="differ in window"):
        measure_agreement(found, trace(model, "mlp_out", window=2))


@each_kind
def test_inference_mode_makes_no_difference(tiny, kind):
    model = tiny("gpt2", kind)
    with torch.inference_mode():
        found = attribute(model, "mlp_out")
    assert torch.equal(found.scores, attribute(model, "mlp_out").scores)


@each_kind
def test_the_model_is_left_as_it_was(fresh_tiny, kind):
    model = fresh_tiny("gemma2", kind)
    model.blocks[1].mlp.W_out.requires_grad_(True)
    found = Found(model)
    attribute(model, "resid_post")
    found.check()
    assert model.blocks[1].mlp.W_out.grad is None


def test_severing_is_refused(tiny):
    with pytest.raises(InputError, match="cannot sever"):
        attribute(tiny("gpt2", KINDS[0]), "resid_post", sever="mlp")


@each_kind
def test_a_whole_target(tiny, kind):
    model = tiny("llama", kind, torch.float64)
    fact = Fact(FACT.template, FACT.subject, "Łucja")
    result = attribute(model, "resid_post", fact=fact, whole_target=True)
    exact = trace(model, fact=fact, whole_target=True)
    assert result.scores.shape == exact.scores.shape
    assert result.corrupted_score == pytest.approx(exact.corrupted_score, rel=1e-9)


WEIGHT = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    "metric",
    [
        lambda logits: logits[:, -1, 5].detach(),
        lambda logits: logits[:, -1].argmax(-1),
        lambda logits: torch.zeros(len(logits)),
        lambda logits: WEIGHT * logits[:, -1, 5].detach(),
    ],
    ids=["detached", "argmax", "constant", "of_another"],
)
def test_a_metric_without_a_gradient_is_refused_by_name(tiny, metric):
    with pytest.raises(InputError, match=r"the metric <lambda> has no gradient .*; leave out detach.* causal_trace"):
        attribute(tiny("gpt2", KINDS[0]), "mlp_out", asked={"P": "prob", "without": metric})
