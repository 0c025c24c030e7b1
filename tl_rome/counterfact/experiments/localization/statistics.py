"""How much of an edit's score the trace explains, beyond the layer that is edited (Hase et al. 2023).

Theirs is the regression (arXiv 2301.04213): least squares of the score y on one intercept per layer, without and with a
common slope on the trace's effect x. By the theorem of Frisch, Waugh and Lovell both fits are functions of moments
within layers: with S_ab the covariance of a and b within layers, pooled over layers, and S the variance of y over
everything,

    R^2(layer) = 1 - S_yy / S,   R^2(layer, trace) = R^2(layer) + S_xy^2 / (S_xx S)

so that a bootstrap over facts needs the resampled means of x, y, x^2, y^2 and xy only. The gain cannot be negative;
what it is worth is seen beside that of a *random-layer control*, in which every fact's effects are read at its layers
in random order.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.bootstrap import interval, resampled_means
from tl_rome.counterfact.report.tables import Estimate

_CONTROLS = 1000
"""Random orders of the layers."""


@dataclass(frozen=True)
class Explained:
    """How much of the variance of one edit score, over facts and layers, layer and trace explain; R^2, from 0 to 1."""

    component: str
    """What was restored."""
    score: str
    """Of `SCORES`."""
    n: int
    """Facts that have the score."""
    layer_only: float
    """R^2 of one mean per layer."""
    trace_only: float
    """R^2 of a line on the trace's effect, the layer unknown."""
    both: float
    """R^2 of one intercept per layer and a common slope on the effect."""
    slope: float
    """That slope: score per unit of effect."""
    gain: Estimate
    """`both` minus `layer_only`: what the trace adds to the layer, with its interval over facts."""
    random: Estimate
    """The same of the random-layer control: mean over random orders, and the interval in which they lie."""
    p_random: float
    """Share of random orders that gain at least as much, (1 + how many) / (1 + all)."""


@dataclass(frozen=True)
class Correlation:
    """Between trace effect and edit score over facts, at one layer; NaN where one of them does not vary."""

    component: str
    """What was restored."""
    score: str
    """Of `SCORES`."""
    layer: int
    """Where both were measured."""
    pearson: Estimate
    """Of the values."""
    spearman: Estimate
    """Of their ranks among all facts; in its interval the ranks are not taken anew for every draw."""


def explain(
    component: str,
    score: str,
    x: Float[Tensor, "fact layer"],
    y: Float[Tensor, "fact layer"],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Explained:
    """Fit scores by layers, and by layers and effects.

    Args:
        component: Name for the result.
        score: Name for the result.
        x: Trace effects.
        y: Edit scores.
        confidence: Of the intervals.
        resamples: Bootstrap draws of facts.
        seed: Of these, and of the random-layer control.
    """
    generator = torch.Generator().manual_seed(seed)
    fit = _fit(_moments(x, y).mean(0))
    draws = _fit(_redrawn(x, y, resamples, generator))["gain"]
    order = torch.rand(_CONTROLS, *x.shape, generator=generator, dtype=torch.float64).argsort(-1)
    shuffled = x.double().expand(_CONTROLS, -1, -1).gather(-1, order)
    controls = _fit(_moments(shuffled, y.expand_as(shuffled)).mean(1))["gain"]
    as_large = int((controls >= fit["gain"]).sum())
    figures = {name: fit[name].item() for name in ("layer_only", "trace_only", "both", "slope")}
    return Explained(
        component=component,
        score=score,
        n=len(x),
        **figures,
        gain=_estimate(fit["gain"], draws, confidence, len(x)),
        random=_estimate(controls.mean(), controls, confidence, len(x)),
        p_random=(1 + as_large) / (1 + _CONTROLS),
    )


def correlate(
    component: str,
    score: str,
    layers: tuple[int, ...],
    x: Float[Tensor, "fact layer"],
    y: Float[Tensor, "fact layer"],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> list[Correlation]:
    """Correlations over facts at every layer, with bootstrap intervals; arguments as those of `explain`."""
    columns = []
    for a, b in ((x, y), (_ranks(x), _ranks(y))):
        draws = _pearson(_redrawn(a, b, resamples, torch.Generator().manual_seed(seed)))
        found = _pearson(_moments(a, b).mean(0))
        columns.append([_estimate(*each, confidence, len(x)) for each in zip(found, draws.T, strict=True)])
    rows = zip(layers, *columns, strict=True)
    return [Correlation(component, score, layer, pearson, spearman) for layer, pearson, spearman in rows]


def _moments(x: Float[Tensor, "*draw fact layer"], y: Float[Tensor, "*draw fact layer"]) -> Tensor:
    """x, y, x^2, y^2 and xy, [*draw fact layer 5], about the grand means, so that little cancels."""
    x, y = (values.double() - values.double().mean((-2, -1), keepdim=True) for values in (x, y))
    return torch.stack([x, y, x * x, y * y, x * y], dim=-1)


def _redrawn(
    x: Float[Tensor, "fact layer"], y: Float[Tensor, "fact layer"], resamples: int, generator: torch.Generator
) -> Float[Tensor, "resample layer 5"]:
    present = torch.ones(len(x), 5, dtype=torch.bool)
    return resampled_means(_moments(x, y), present, resamples=resamples, generator=generator)


def _within(means: Float[Tensor, "*draw layer 5"]) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of x and of y, and their covariance, at each layer; 0 where what is left is rounding."""
    x, y, xx, yy, xy = means.unbind(-1)
    spread_x, spread_y = (_spread(*each) for each in ((x, xx), (y, yy)))
    constant = (spread_x == 0) | (spread_y == 0)
    return spread_x, spread_y, (xy - x * y).masked_fill(constant, 0)


def _spread(mean: Float[Tensor, "*draw layer"], square: Float[Tensor, "*draw layer"]) -> Float[Tensor, "*draw layer"]:
    variance = square - mean * mean
    return variance.masked_fill(variance <= 1e-12 * square, 0)


def _pearson(means: Float[Tensor, "*draw layer 5"]) -> Float[Tensor, "*draw layer"]:
    x, y, both = _within(means)
    return (both / (x * y).sqrt()).clamp(-1, 1)


def _fit(means: Float[Tensor, "*draw layer 5"]) -> dict[str, Float[Tensor, "*draw"]]:
    """R^2 of the fits, the gain and the slope."""
    x, y, xy = (each.mean(-1) for each in _within(means))
    [total_x, total_y, total_xy] = (each[..., 0] for each in _within(means.mean(-2, keepdim=True)))
    x, total_x = x.clamp_min(1e-300), total_x.clamp_min(1e-300)  # an effect that does not vary explains nothing
    gain = xy.square() / (x * total_y)
    layer_only = 1 - y / total_y
    return {
        "layer_only": layer_only,
        "trace_only": total_xy.square() / (total_x * total_y),
        "both": layer_only + gain,
        "slope": xy / x,
        "gain": gain,
    }


def _ranks(values: Float[Tensor, "fact layer"]) -> Float[Tensor, "fact layer"]:
    """Ranks among the facts at each layer; equal values share their mean rank."""
    import pandas

    return torch.from_numpy(pandas.DataFrame(values.double().numpy()).rank().to_numpy(copy=True))


def _estimate(value: Tensor, draws: Float[Tensor, " draw"], confidence: float, n: int) -> Estimate:
    low, high = interval(draws, confidence)
    return Estimate(value.item(), low.item(), high.item(), n if bool(value.isfinite()) else 0)
