"""Pictures of a localization report: effect against score, and both by layer, as Hase et al. (2023) draw them."""

from typing import TYPE_CHECKING

import torch

from tl_rome.counterfact.experiments.localization.report import LocalizationReport, check_scores
from tl_rome.counterfact.experiments.localization.scores import SCORES
from tl_rome.errors import InputError
from tl_rome.figures import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SCORE_COLOR, _EFFECT_COLOR = "#0072b2", "#d55e00"


def plot_localization(
    report: LocalizationReport,
    ax: "Axes | None" = None,
    *,
    component: str | None = None,
    score: str = "overall",
    title: str | None = None,
) -> "Axes":
    """Draw edit score against trace effect: a point for each fact and layer, coloured by layer.

    Args:
        report: What `localization_report` returned.
        ax: Axes to draw into; a new figure's by default.
        component: What was restored; by default the first.
        score: Of `SCORES`.
        title: Replaces the default title, which has what the trace adds to R^2.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If the report has no such component or score.
    """
    index, name = _component(report, component)
    check_scores([score])
    ax = ax or new_axes(4.2, 3.2)
    effects, scores = report.effects[index], report.scores[SCORES.index(score)]
    colors = torch.tensor(report.layers).expand_as(effects)
    drawn = ax.scatter(effects.flatten(), scores.flatten(), c=colors.flatten(), s=12, cmap="viridis", linewidths=0)
    figure = ax.figure
    figure.colorbar(drawn, ax=ax, label="layer", ticks=list(report.layers))
    fit = next((each for each in report.explained if (each.component, each.score) == (name, score)), None)
    gained = "" if fit is None else f": R² {fit.layer_only:.2f} by layer, +{fit.gain.mean:.3f} by trace"
    ax.set_xlabel(f"effect of restoring {name}")
    ax.set_ylabel(f"{score} edit score")
    ax.set_title(title or f"{report.n} facts{gained}", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_localization_by_layer(
    report: LocalizationReport,
    ax: "Axes | None" = None,
    *,
    component: str | None = None,
    score: str = "overall",
    title: str | None = None,
) -> "Axes":
    """Draw mean edit score and mean trace effect over layers, each with an axis of its own.

    Args:
        report: What `localization_report` returned.
        ax: Axes to draw into; a new figure's by default.
        component: What was restored; by default the first.
        score: Of `SCORES`.
        title: Replaces the default title.

    Returns:
        The axes of the score; nothing is shown or saved.

    Raises:
        InputError: If the report has no such component or score.
    """
    index, name = _component(report, component)
    check_scores([score])
    ax = ax or new_axes(4.2, 3.2)
    other = ax.twinx()
    scores, effects = report.scores[SCORES.index(score)].nanmean(0), report.effects[index].mean(0)
    ax.plot(report.layers, scores, color=_SCORE_COLOR, marker="o", markersize=3.5, label=f"{score} edit score")
    other.plot(report.layers, effects, color=_EFFECT_COLOR, marker="s", markersize=3.5, linestyle="--", label=name)
    ax.axvline(report.layer, color="#999999", linewidth=0.8, linestyle=":")
    ax.set_ylim(-0.02, 1.02)
    ax.set_xticks(report.layers)
    ax.set_xlabel("layer")
    ax.set_ylabel(f"{score} edit score", color=_SCORE_COLOR)
    other.set_ylabel(f"effect of restoring {name}", color=_EFFECT_COLOR)
    ax.set_title(title or f"mean of {report.n} facts; best on those held out: layer {report.layer}", fontsize="medium")
    for each in (ax, other):
        each.spines[["top"]].set_visible(False)
    return ax


def localization_figure(report: LocalizationReport) -> "Figure":
    """Both pictures for every component, a row each."""
    from matplotlib.figure import Figure

    rows = len(report.components)
    figure = Figure(figsize=(9, 3.2 * rows), dpi=150, layout="constrained")
    for name, (left, right) in zip(report.components, figure.subplots(rows, 2, squeeze=False), strict=True):
        plot_localization(report, left, component=name)
        plot_localization_by_layer(report, right, component=name)
    return figure


def _component(report: LocalizationReport, component: str | None) -> tuple[int, str]:
    name = component or report.components[0]
    if name not in report.components:
        raise InputError(f"the report has no {name!r}; choose among {', '.join(report.components)}")
    return report.components.index(name), name
