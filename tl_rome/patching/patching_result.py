"""Traces as TransformerLens's own `PatchingResult`, which 4.3 and later have, and back.

Both hold a score for each patched cell and the score of the run that nothing was patched in. Theirs keeps one per
example; a trace keeps the mean over its draws, so that what becomes of one is `reduced`. Axes have TransformerLens's
names: layer, pos, and head where states were split.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.patching.result import TraceResult


def to_patching_result(trace: TraceResult | Mapping[str, TraceResult]) -> Any:
    """A trace, or several metrics of one sweep by name, as a `transformer_lens.patching.PatchingResult`.

    Its `effect()` is `TraceResult.effects`, and `normalized(torch.tensor(trace.clean_score))` is
    `TraceResult.normalized`.

    Args:
        trace: Denoising, as TransformerLens patches: its baseline is the corrupted run.

    Raises:
        UnsupportedModelError: If the installed TransformerLens has no such class.
        InputError: If a trace is noising, or several are not of one sweep.
    """
    cls = _class()
    traces = [trace] if isinstance(trace, TraceResult) else list(trace.values())
    if not traces:
        raise InputError("there are no traces; give at least one")
    for each in traces:
        if each.direction != "denoising":
            raise InputError("a noising trace patches a clean run, which TransformerLens's baseline is not")
        if _sweep(each) != _sweep(traces[0]):
            raise InputError("the traces are of different sweeps; give those of one, as causal_trace(metric={...}) has")
    axes = ["layer", "pos", "head"][: traces[0].scores.ndim]
    values, baseline = torch.stack([each.scores for each in traces]), [each.corrupted_score for each in traces]
    several = not isinstance(trace, TraceResult)
    from transformer_lens.patching import make_df_from_ranges

    return cls(
        values=values if several else values[0],
        axis_names=axes,
        index_df=make_df_from_ranges(list(traces[0].scores.shape), axes),
        metric_names=list(trace) if not isinstance(trace, TraceResult) else [trace.metric],
        reduced=True,
        baseline=torch.tensor(baseline if several else baseline[0], dtype=torch.float64),
        has_metric_axis=several,
    )


def from_patching_result(found: Any, like: TraceResult, clean_score: float | None = None) -> TraceResult:
    """What TransformerLens patched, as a trace: for our plots, averages and files.

    Args:
        found: A `PatchingResult` of one metric over layers and positions, or heads too, made with `baseline=True`.
        like: A trace of the same prompt and component, from which everything but the scores is taken.
        clean_score: The metric of the clean run; by default that of `like`, for the same metric.

    Raises:
        UnsupportedModelError: If the installed TransformerLens has no such class.
        InputError: If it is anything else, has no baseline, or has other cells than `like`.
        NumericsError: If a score is not finite.
    """
    cls = _class()
    if not isinstance(found, cls) or found.has_metric_axis:
        raise InputError("give one PatchingResult of one metric; result[name] takes one of several")
    if found.baseline is None:
        raise InputError("the result has no baseline to compare with; patch with baseline=True")
    scores = found.mean().detach().cpu().double()
    if tuple(scores.shape) != tuple(like.scores.shape):
        raise InputError(f"the result has cells {tuple(scores.shape)}, the trace {tuple(like.scores.shape)}")
    return replace(
        like,
        scores=scores,
        corrupted_score=float(found.baseline.double().mean()),
        clean_score=like.clean_score if clean_score is None else clean_score,
        metric=found.metric_names[0],
        samples=1 if found.reduced else found.values.shape[-1],
        direction="denoising",
        method="plain",
    )


def _sweep(trace: TraceResult) -> tuple[Any, ...]:
    names = ("prompt", "component", "window", "clipping", "corruption", "samples", "direction", "severed", "units")
    return tuple(getattr(trace, name) for name in (*names, "model"))


def _class() -> type:
    try:
        from transformer_lens.patching import PatchingResult  # type: ignore[attr-defined]
    except ImportError as error:
        raise UnsupportedModelError(
            "the installed TransformerLens has no PatchingResult; pip install 'transformer-lens>=4.3'"
        ) from error
    return PatchingResult
