"""Several metrics of one sweep have the numbers that each has alone, and effects on one scale."""

import pytest
import torch
from support.families import FAMILY_KINDS, KINDS
from support.traces import FACT, NOISE, trace

from tl_rome.errors import InputError, NumericsError
from tl_rome.patching import LogitDifference, TraceConfig, attribution_trace
from tl_rome.patching.methods import incremental

KIND = KINDS[0]
METRICS = {"P": "prob", "log P": "logprob", "difference": LogitDifference(3, 5), "mean": lambda logits: logits.mean()}


@pytest.mark.parametrize("method", ["incremental", "plain"])
@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS[:3])
def test_each_is_as_if_alone_to_the_last_bit(tiny, family, kind, method):
    model = tiny(family, kind)
    found = trace(model, "mlp_out", window=2, metric=METRICS, method=method)
    assert list(found) == list(METRICS)
    for name, result in found.items():
        alone = trace(model, "mlp_out", window=2, metric=METRICS[name], method=method)
        assert torch.equal(result.scores, alone.scores)
        assert (result.clean_score, result.corrupted_score) == (alone.clean_score, alone.corrupted_score)
        assert (result.metric, result.method) == (alone.metric, alone.method)


def test_a_list_keeps_its_order_and_is_one_sweep(tiny, monkeypatch):
    sweeps, climb = [], incremental.Climb.__call__
    monkeypatch.setattr(incremental.Climb, "__call__", lambda self, spots: sweeps.append(1) or climb(self, spots))
    one = trace(tiny("gpt2", KIND), "resid_post", metric="prob")
    alone = len(sweeps)
    both = trace(tiny("gpt2", KIND), "resid_post", metric=["logprob", "prob"])
    assert len(sweeps) == 2 * alone
    assert [result.metric for result in both] == ["logprob", "prob"]
    assert torch.equal(both[1].scores, one.scores)
    with pytest.raises(InputError, match="there are no metrics"):
        trace(tiny("gpt2", KIND), "resid_post", metric=[])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_normalized_effects_have_corrupted_at_0_and_clean_at_1(tiny, direction):
    result = trace(tiny("gpt2", KIND), "resid_post", metric="logprob", direction=direction)
    patched = result.normalized * (result.clean_score - result.corrupted_score) + result.corrupted_score
    torch.testing.assert_close(patched, result.scores)
    start = result.subject.start
    untouched = torch.full_like(result.normalized[:, :start], direction == "noising")
    torch.testing.assert_close(result.normalized[:, :start], untouched)
    last = result.normalized[-1, -1].item()  # all that the model says is decided there
    assert last == pytest.approx(float(direction == "denoising"), abs=1e-5)


def test_without_a_scale_there_is_no_normalized_effect(tiny):
    result = trace(tiny("gpt2", KIND), "resid_post", metric=lambda logits: 0 * logits[:, -1, 0] + 2)
    with pytest.raises(NumericsError, match=r"score the same \(2\), so there is no scale"):
        _ = result.normalized


def test_settings_hold_one_metric():
    with pytest.raises(InputError, match="metric"):
        TraceConfig(metric=["prob", "logprob"])  # type: ignore[arg-type]


def doubled(logits):
    return logits.mul_(2)[:, -1, 5]


def lowered(logits):
    logits[:, -1].clamp_(max=100.0)  # of these logits it changes none
    return logits.mean()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("metric", [doubled, lowered])
def test_one_that_would_change_what_the_others_score_is_refused(tiny, metric, inference):
    model, config = tiny("gpt2", KIND), TraceConfig(corruption=NOISE)
    with torch.inference_mode(inference):
        with pytest.raises(InputError, match=f"metric {metric.__name__} changes the logits in place.*clone"):
            trace(model, metric=["prob", metric])
        with pytest.raises(InputError, match=f"metric {metric.__name__} changes the logits in place"):
            attribution_trace(model, FACT, config=config, generator=torch.Generator(), metric=["prob", metric])
