"""Attribution patching: every cell of a trace from one backward pass, to first order.

    score(patched) ~ score(base) + (source - base) . d score / d activation, at the base run

The gradient says how the score changes for small changes of a state. Patching is a large change, so this is a
heuristic: check it with `measure_agreement`, against an exact trace. After Nanda (2023), "Attribution patching".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching.config import MetricName, Metrics, TraceConfig, as_asked, named_metrics
from tl_rome.patching.corruption import at_scale_of
from tl_rome.patching.metrics import Metric, metric_name
from tl_rome.patching.patch import Patch
from tl_rome.patching.result import TraceResult
from tl_rome.patching.trace import split
from tl_rome.patching.traced_prompt import TracedPrompt, prepare
from tl_rome.running.borrowed import borrows
from tl_rome.running.forward import final_logits, last_resid, run
from tl_rome.running.hooks import hooked
from tl_rome.sites import EMBED, HookedModel
from tl_rome.storage.files import fingerprint


@overload
def attribution_trace(  # pyright: ignore[reportOverlappingOverload]
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    config: TraceConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    metric: MetricName | Metric | None = None,
) -> TraceResult: ...
@overload
def attribution_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    config: TraceConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    metric: Mapping[str, MetricName | Metric],
) -> dict[str, TraceResult]: ...
@overload
def attribution_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    config: TraceConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    metric: Sequence[MetricName | Metric],
) -> list[TraceResult]: ...
@borrows
@torch.inference_mode(mode=False)  # gradients are needed, whatever mode the caller is in
def attribution_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    config: TraceConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    metric: Metrics | None = None,
) -> TraceResult | dict[str, TraceResult] | list[TraceResult]:
    """Approximate `causal_trace` by one forward and one backward pass of the runs that it would patch.

    Args:
        model: Left as found.
        fact: Prompt and subject.
        component: As in `causal_trace`.
        config: Settings; `sever` and `method` do not apply.
        generator: Source of the noise: the same seed as an exact trace's gives the same noise. Not needed by a
            corruption that draws nothing.
        metric: Instead of the settings' own; several, by name or in a list, share the forward pass and have a backward
            pass each, with the numbers that each has alone.

    Returns:
        A trace with `method` "attribution"; effects of a window are the sums of its layers' effects. Of several metrics
        a trace for each, by its name or in the order given.

    Raises:
        InputError: If something is to be severed, there is no metric or one without a gradient, and as `causal_trace`.
    """
    config = config or TraceConfig()
    if config.sever is not None:
        raise InputError("attribution patching cannot sever; leave it out, or use causal_trace")
    asked = config.metric if metric is None else metric
    with torch.no_grad():
        config = replace(config, corruption=at_scale_of(model, config.corruption))
        configs = [replace(config, metric=each) for each in named_metrics(asked).values()]
        patch = Patch.make(model, component, config.width(component), config.clipping)
        traced = TracedPrompt.record(prepare(model, fact, config, generator), configs, patch.names, attended=False)
        patch = split(patch, [traced], config.units)
    identity, found = fingerprint(model), list[TraceResult]()
    for place, (each, gradients) in enumerate(zip(configs, _gradients(traced, patch, configs), strict=True)):
        with torch.no_grad():
            scores = traced.base_scores[place] + _first_order(traced, patch, gradients)
            found.append(traced.result(scores, patch, each, place=place, method="attribution", model=identity))
    return as_asked(asked, found)


def _first_order(traced: TracedPrompt, patch: Patch, gradients: Mapping[str, Tensor]) -> Float[Tensor, "cell pos"]:
    """Change of the mean score by each cell's patch, were it linear."""
    products, recorded = [], traced.recorded
    for name in patch.points.values():
        change = patch.states(recorded.source(name)) - patch.states(recorded.base(name))
        products.append((change * patch.states(gradients[name]))[:, : len(traced.runs.prompt.tokens)])
    read = torch.stack(products).cpu().double()
    effects = {layer: _by_unit(each, patch).mean(1) for layer, each in zip(patch.points, read, strict=True)}
    rows = [sum(effects[layer][cell.unit] for layer in cell.window) for cell in patch.cells]
    return torch.stack(rows)  # type: ignore[arg-type]


def _gradients(traced: TracedPrompt, patch: Patch, configs: Sequence[TraceConfig]) -> Iterator[dict[str, Tensor]]:
    """Gradient of each sample's score with respect to the base run's states, by hook name; one for each metric."""
    runs, model, found = traced.runs, traced.runs.model, {}

    def keep(name: str):
        def hook_function(activation: Tensor, hook: object) -> Tensor:
            found[name] = activation if activation.requires_grad else activation.detach().requires_grad_()
            return found[name]

        return hook_function

    # Without a leaf to start from, frozen weights would leave nothing to differentiate.
    names = list(dict.fromkeys([EMBED, *patch.points.values()]))
    last = last_resid(model)
    tokens, hooks = runs.base_batch(1)
    hooks = [*hooks, *((name, keep(name)) for name in names if name != last), (last, keep(last))]
    with torch.enable_grad(), hooked(model, hooks):
        run(model, tokens)
        logits = final_logits(model, found[last][:, -runs.scored :])
        wanted = [found[name] for name in patch.points.values()]
        scores = [metric(logits).sum() for metric in traced.metrics]
    for left, score, config in zip(reversed(range(len(scores))), scores, configs, strict=True):
        gradients = [None] * len(wanted)
        if score.requires_grad:
            gradients = torch.autograd.grad(score, wanted, retain_graph=left > 0, allow_unused=True)
        named = zip(patch.points.values(), gradients, strict=True)
        by_name = {name: gradient for name, gradient in named if gradient is not None}
        if len(by_name) < len(wanted):
            raise InputError(
                f"the metric {metric_name(config.metric_for(traced.answer))} has no gradient with respect to the "
                "logits, from which attribution patching follows; leave out detach, argmax and the like, or use "
                "causal_trace"
            )
        yield by_name


def _by_unit(products: Float[Tensor, "samples pos ..."], patch: Patch) -> Float[Tensor, "unit samples pos"]:
    if patch.units is None:
        return reduce(products, "sample pos ... -> 1 sample pos", "sum")
    parts = [reduce(products[:, :, unit], "sample pos ... -> sample pos", "sum") for unit in patch.units]
    return torch.stack(parts)


@dataclass(frozen=True)
class Agreement:
    """How well an approximation orders and places the cells of an exact trace."""

    pearson: float
    """Correlation of effects over all cells."""
    spearman: float
    """Correlation of their ranks."""
    cells: int
    """Cells compared: those where the exact effect can differ from 0, from the subject on."""

    def __str__(self) -> str:
        return f"Pearson {self.pearson:.2f}, Spearman {self.spearman:.2f} over {self.cells} cells"


def measure_agreement(approximate: TraceResult, exact: TraceResult) -> Agreement:
    """Compare an approximation with the exact trace of the same experiment.

    Raises:
        InputError: If the two are not of one experiment.
    """
    same = ("prompt", "component", "window", "clipping", "metric", "direction", "units", "model")
    differing = [name for name in same if getattr(approximate, name) != getattr(exact, name)]
    if differing:
        raise InputError(f"the traces differ in {', '.join(differing)}; compare traces of one experiment")
    import pandas as pd

    pair = {"approximate": approximate, "exact": exact}
    cells = pd.DataFrame({name: t.effects[:, t.subject.start :].flatten().numpy() for name, t in pair.items()})
    pearson, spearman = (float(cells.corr(method).iloc[0, 1]) for method in ("pearson", "spearman"))  # type: ignore[arg-type]
    return Agreement(pearson, spearman, len(cells))
