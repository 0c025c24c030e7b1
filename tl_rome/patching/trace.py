"""Causal tracing (section 2.1): which states, restored to their clean values, bring the right answer back.

The model runs once on the clean prompt, and once per noise sample with the subject's embeddings corrupted. Then single
states h_t^(l), or runs of ten MLP or attention outputs, are put back to what they were in the clean run, one (layer,
token) cell at a time, and the probability of the answer is read. Cells with a high score are decisive.

The same experiment runs on any hook point, in either direction, with any metric of the logits.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count
from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.patching.config import (
    Clipping,
    Direction,
    Method,
    MetricName,
    Metrics,
    Sever,
    TraceConfig,
    Units,
    as_asked,
    named_metrics,
)
from tl_rome.patching.corruption import Corruption, at_scale_of
from tl_rome.patching.methods.incremental import needed_names, trace_incremental
from tl_rome.patching.methods.plain import trace_plain
from tl_rome.patching.metrics import Metric
from tl_rome.patching.patch import Patch
from tl_rome.patching.result import TraceResult
from tl_rome.patching.runs import Runs
from tl_rome.patching.traced_prompt import TracedPrompt, prepare
from tl_rome.running.borrowed import borrows
from tl_rome.running.memory import Halving
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint

_log = logging.getLogger(__name__)


@overload
def causal_trace(  # pyright: ignore[reportOverlappingOverload]
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    *,
    generator: torch.Generator | None = None,
    window: Count | None = None,
    clipping: Clipping = "released",
    corruption: Corruption | None = None,
    metric: MetricName | Metric = "prob",
    direction: Direction = "denoising",
    sever: Sever | None = None,
    units: Units = None,
    whole_target: bool | None = None,
    method: Method = "incremental",
    max_batch_tokens: Count | None = None,
    progress: bool = True,
) -> TraceResult: ...
@overload
def causal_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    *,
    generator: torch.Generator | None = None,
    window: Count | None = None,
    clipping: Clipping = "released",
    corruption: Corruption | None = None,
    metric: Mapping[str, MetricName | Metric] = ...,
    direction: Direction = "denoising",
    sever: Sever | None = None,
    units: Units = None,
    whole_target: bool | None = None,
    method: Method = "incremental",
    max_batch_tokens: Count | None = None,
    progress: bool = True,
) -> dict[str, TraceResult]: ...
@overload
def causal_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    *,
    generator: torch.Generator | None = None,
    window: Count | None = None,
    clipping: Clipping = "released",
    corruption: Corruption | None = None,
    metric: Sequence[MetricName | Metric] = ...,
    direction: Direction = "denoising",
    sever: Sever | None = None,
    units: Units = None,
    whole_target: bool | None = None,
    method: Method = "incremental",
    max_batch_tokens: Count | None = None,
    progress: bool = True,
) -> list[TraceResult]: ...
@borrows
def causal_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    *,
    generator: torch.Generator | None = None,
    window: Count | None = None,
    clipping: Clipping = "released",
    corruption: Corruption | None = None,
    metric: Metrics = "prob",
    direction: Direction = "denoising",
    sever: Sever | None = None,
    units: Units = None,
    whole_target: bool | None = None,
    method: Method = "incremental",
    max_batch_tokens: Count | None = None,
    progress: bool = True,
) -> TraceResult | dict[str, TraceResult] | list[TraceResult]:
    """Trace where a model keeps a fact.

    Args:
        model: A HookedTransformer or TransformerBridge; left as found.
        fact: Prompt and subject. If it has a target, that is scored, see `whole_target`; otherwise the clean model's
            most likely token, as in the authors' code.
        component: "resid_post" for hidden states, "mlp_out", "attn_out", or any other hook point of the blocks, by
            TransformerLens's shorthand or its name there, as in "resid_mid", "z", "attn.hook_pattern" or "post". A full
            name, as in "blocks.5.attn.hook_z" or "hook_embed", is patched alone.
        generator: Source of the noise; the same seed gives the same noise for every component. Not needed by a
            corruption that draws nothing, such as another subject's name.
        window: Layers patched together; by default 1 for hidden states and 10 for everything else, as in the paper
            (appendix B.2).
        clipping: Which layers a window covers, see `layer_window`.
        corruption: What is done to the subject's embeddings; by default `GaussianNoise()`: ten draws at the model's
            own `noise_scale`.
        metric: "prob" (in [0, 1]), "logprob" (nats), or a function of logits [rows, scored, d_vocab] that gives one
            number per row, see `metrics`. One that gives a single number is called row by row. Several, by name or in a
            list, are scored in one sweep, with the numbers that each has alone.
        direction: "denoising" restores clean states in corrupted runs; "noising" puts corrupted states into a clean
            run.
        sever: "mlp" or "attn": also keep all those outputs at the patched position as they are in the run that is
            patched, as in figure 3 (the authors' `trace_with_repatch`). The patch then has no effect through
            them.
        units: Patch parts of each state, one at a time: "heads", groups of a number of features, or lists of indices.
            The scores then have a third axis.
        whole_target: Whether to score all tokens of the fact's target, each at its own position, or only the first. By
            default only the first, unless that is white space: many tokenizers write " 1889" as " ", "1", "8", "8",
            "9", and any number begins with that space.
        method: "incremental" computes nothing twice; "plain" runs the whole model for each cell. The numbers are the
            same. What the first does not cover, a hook point or a model, goes the plain way; this is logged and
            recorded.
        max_batch_tokens: Bound on rows x positions run at once, which bounds memory; by default what fits the device,
            4096 on a CPU. Where memory runs out, half.
        progress: Whether to show a progress bar over positions.

    Returns:
        Scores of shape [layer, pos] with what is needed to read and to plot them; of several metrics a result for each,
        by its name or in the order given.

    Raises:
        InputError: For an unknown hook point or choice, a window below 1, a subject or prompt that cannot be tokenised
            as asked, a corruption or metric that returns another shape, or noise without a generator.
        NumericsError: If the model's outputs are not finite.
        UnsupportedModelError: If the hook point exists, but does not fire.
    """
    configs = [
        TraceConfig(
            window=window,
            clipping=clipping,
            corruption=corruption,
            metric=each,
            direction=direction,
            sever=sever,
            units=units,
            whole_target=whole_target,
            method=method,
            max_batch_tokens=max_batch_tokens,
        )
        for each in named_metrics(metric).values()
    ]
    generators = None if generator is None else [generator]
    [found] = trace_by_metrics(model, [fact], component, configs, generators=generators, progress=progress)
    return as_asked(metric, found)


@borrows
@torch.no_grad()
def trace_together(
    model: HookedModel,
    facts: Sequence[Fact],
    component: str,
    config: TraceConfig,
    *,
    generators: Sequence[torch.Generator] | None = None,
    positions: Collection[int] | None = None,
    progress: bool = True,
) -> list[TraceResult]:
    """Trace several facts in one go, which keeps a large device busy; the numbers are those of one by one.

    Args:
        model: Left as found.
        facts: Prompts and subjects.
        component: As in `causal_trace`.
        config: Settings.
        generators: Source of each fact's noise; not needed by a corruption that draws nothing.
        positions: Positions to trace, by default all; others keep the score of the run that is patched.
        progress: Whether to show a progress bar over positions.

    Raises:
        TLRomeError: As `causal_trace`.
    """
    options: dict[str, Any] = {"generators": generators, "positions": positions, "progress": progress}
    return [result for [result] in trace_by_metrics(model, facts, component, [config], **options)]


@torch.no_grad()
def trace_by_metrics(
    model: HookedModel,
    facts: Sequence[Fact],
    component: str,
    configs: Sequence[TraceConfig],
    *,
    generators: Sequence[torch.Generator] | None = None,
    positions: Collection[int] | None = None,
    progress: bool = True,
) -> list[list[TraceResult]]:
    """The same with several metrics in one sweep: for each fact a result by each of some settings.

    Args:
        model: Borrowed.
        facts: Prompts and subjects.
        component: As in `causal_trace`.
        configs: Settings that differ in the metric alone, at least one.
        generators: See `trace_together`.
        positions: See `trace_together`.
        progress: Whether to show a progress bar over positions.

    Raises:
        TLRomeError: As `causal_trace`.
    """
    if generators is not None and len(generators) != len(facts):
        raise InputError(f"{len(facts)} facts but {len(generators)} generators; give each fact one")
    identity = fingerprint(model)
    corruption = at_scale_of(model, configs[0].corruption)
    configs = [replace(config, corruption=corruption) for config in configs]
    config = configs[0]
    patch = Patch.make(model, component, config.width(component), config.clipping, config.sever)
    draws = [None] * len(facts) if generators is None else generators
    runs = [prepare(model, fact, config, rng) for fact, rng in zip(facts, draws, strict=True)]
    longest = max((len(run.prompt.tokens) for run in runs), default=0)
    if positions is not None and not all(0 <= position < longest for position in positions):
        raise InputError(f"positions {sorted(positions)} are not all in 0 to {longest - 1}, those of the prompts")
    chosen = config.method
    if chosen == "incremental" and not patch.in_blocks:
        _log.info("%s lies outside the blocks; tracing it cell by cell", component)
        chosen = "plain"

    def trace(part: Sequence[Runs]) -> list[list[TraceResult]]:
        method = chosen
        with tqdm(desc=f"trace {component}", unit="pos", disable=not progress) as bar:
            try:
                traced, split, scores = _METHODS[method](part, patch, configs, positions, bar)
            except UnsupportedModelError as error:
                if method == "plain":
                    raise
                _log.warning("%s; tracing cell by cell instead", error)
                method = "plain"
                traced, split, scores = _plain(part, patch, configs, positions, bar)
        return [
            [
                one.result(table, split, each, place=place, method=method, model=identity)
                for place, (table, each) in enumerate(zip(tables, configs, strict=True))
            ]
            for one, tables in zip(traced, scores, strict=True)
        ]

    return [results for _, part in Halving("prompts")(runs, trace) for results in part]


_Traced = tuple[list[TracedPrompt], Patch, list[Float[Tensor, "metrics cell pos"]]]


def _incremental(
    runs: Sequence[Runs], patch: Patch, configs: Sequence[TraceConfig], positions: Collection[int] | None, bar: tqdm
) -> _Traced:
    bar.reset(max(len(run.prompt.tokens) for run in runs))
    names = needed_names(runs[0].model, patch)
    traced = [TracedPrompt.record(run, configs, names, attended=True) for run in runs]
    patch = split(patch, traced, configs[0].units)
    bound = configs[0].batch_tokens(runs[0].model)
    scores = trace_incremental(traced, patch, max_batch_tokens=bound, tick=bar.update, positions=positions)
    return traced, patch, scores


def _plain(
    runs: Sequence[Runs], patch: Patch, configs: Sequence[TraceConfig], positions: Collection[int] | None, bar: tqdm
) -> _Traced:
    bar.reset(sum(len(run.prompt.tokens) for run in runs))
    traced = [TracedPrompt.record(run, configs, patch.names, attended=False) for run in runs]
    patch = split(patch, traced, configs[0].units)
    bound = configs[0].batch_tokens(runs[0].model)
    scores = [trace_plain(one, patch, max_batch_tokens=bound, tick=bar.update, positions=positions) for one in traced]
    return traced, patch, scores


_METHODS = {"incremental": _incremental, "plain": _plain}


def split(patch: Patch, traced: Sequence[TracedPrompt], units: Units) -> Patch:
    """The patch with its units, once the hook point's shape is known.

    Raises:
        InputError: If the hook point has no positions, or its features cannot be split so.
    """
    name = next(iter(patch.points.values()))
    found = [one.recorded.found[name] for one in traced]
    states = [patch.states(activation) for activation in found]
    for activation, state, one in zip(found, states, traced, strict=True):
        if state.shape[:2] != (1 + one.runs.samples, len(one.runs.tokens)):
            raise InputError(f"{patch.component!r} has shape {tuple(activation.shape)}, without positions to patch")
    return patch.split(units, states[0][0, 0])
