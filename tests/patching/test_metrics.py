"""Metrics as TransformerLens users write them: one number per row, or one in all."""

import pytest
import torch
from support.families import KINDS
from support.traces import FACT, NOISE, trace

from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching import TraceConfig, attribution_trace, trace_together
from tl_rome.patching.metrics import per_row

each_kind = pytest.mark.parametrize("kind", KINDS)
FACTS = [FACT, Fact("The mother tongue of {} is", "Marie Curie")]


def each(logits):
    return logits[:, -1, 7] - logits[:, -1, 8]


def in_all(logits):
    """As TransformerLens's metrics end."""
    return each(logits).mean()


def of_one_row(logits):
    """As a notebook writes it that knows one prompt only."""
    return logits.squeeze(0)[-1, 7] - logits.squeeze(0)[-1, 8]


def in_three_ways(model, metric, **settings):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    config = TraceConfig(corruption=NOISE, metric=metric, window=2, **settings)
    rng = torch.Generator().manual_seed(0)
    return [
        trace(model, "mlp_out", metric=metric, window=2, **settings),
        trace(model, "mlp_out", metric=metric, window=2, method="plain", **settings),
        attribution_trace(model, FACT, "mlp_out", config, generator=rng),
        *trace_together(model, FACTS, "mlp_out", config, generators=generators, progress=False),
    ]


@each_kind
@pytest.mark.parametrize("metric", [in_all, of_one_row])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_single_number_gives_what_one_per_row_gives(tiny, kind, metric, direction):
    model = tiny("gpt2", kind)
    expected, found = (in_three_ways(model, one, direction=direction) for one in (each, metric))
    for theirs, ours in zip(found, expected, strict=True):
        assert ours.effects.abs().max() > 1e-3
        assert torch.equal(theirs.scores, ours.scores)
        assert (theirs.clean_score, theirs.corrupted_score) == (ours.clean_score, ours.corrupted_score)
    assert found[0].metric == metric.__qualname__


@each_kind
@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits: logits, r"returned shape \(1, 1, \d+\) for logits of shape \(1, 1, \d+\)"),
        (lambda logits: each(logits)[:, None], r"returned shape \(1, 1\)"),
        (lambda logits: each(logits).mean(0, keepdim=True), r"returned shape \(1,\) for logits of shape \(2, 1, \d+\)"),
        (lambda logits: None, "returned a NoneType"),
        (lambda logits: 0.5, "returned a float"),
    ],
)
def test_anything_else_is_refused_before_the_cells_are_run(tiny, kind, metric, message):
    model, runs = tiny("gpt2", kind), []
    config = TraceConfig(metric=metric, corruption=NOISE)
    with model.hooks([("blocks.0.hook_resid_pre", lambda value, hook: runs.append(len(value)))]):
        for method in ("incremental", "plain"):
            with pytest.raises(InputError, match=f"{message}.*; return a tensor with one number per row"):
                trace(model, metric=metric, method=method)
        with pytest.raises(InputError, match=message):
            attribution_trace(model, FACT, config=config, generator=torch.Generator())
    assert runs == [3, 3, 3], "more was run than clean and corrupted, once each"


def test_a_metric_per_row_is_not_wrapped():
    assert per_row(each, torch.zeros(1, 1, 10)) is each
