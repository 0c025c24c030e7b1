"""Curves of experiments: sweeps (figure 17) and sequential edits of one model (the draft's figure 10)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tl_rome.counterfact.experiments.curve import CURVES, Curve
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.errors import InputError
from tl_rome.figures import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("D", "o", "s", "^", "v", "x", "P")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Lines differ in style and markers too, so that they can be distinguished in grey."""


def plot_sweep(curve: Curve, ax: "Axes | None" = None, *, title: str | None = None) -> "Axes":
    """Draw S, ES, PS and NS over the values of a setting, with intervals as bands.

    Args:
        curve: What `sweep_editors` returned.
        ax: Axes to draw into; a new figure's by default.
        title: Replaces the default title.

    Returns:
        The axes; nothing is shown or saved.
    """
    ax = ax or new_axes(4.2, 3.0)
    for index, column in enumerate(CURVES):
        _line(ax, curve, column, column, index)
    if curve.along == "epsilon":
        ax.set_xscale("log")
    n = max(row[column].n for row in curve.rows for column in CURVES)
    _finish(ax, curve.along, title or f"{curve.name}, {n} records")
    return ax


def plot_sequential(
    results: Mapping[str, SequentialResult], ax: "Axes | None" = None, *, column: str = "S", title: str | None = None
) -> "Axes":
    """Draw one score over the number of facts in a model, a line per editor, with intervals as bands.

    Args:
        results: What `sequential_edits` returned, by the editor's name.
        ax: Axes to draw into; a new figure's by default.
        column: S, ES, PS or NS.
        title: Replaces the default title.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If there is no result, or no such column.
    """
    if not results or column not in CURVES:
        raise InputError(f"{len(results)} results and column {column!r}; give at least one, and {', '.join(CURVES)}")
    ax = ax or new_axes(4.2, 3.0)
    for index, (name, result) in enumerate(results.items(), start=1):  # black is the colour of S
        _line(ax, result.curve, column, name, index)
    _finish(ax, "facts in one model", title or column)
    return ax


def sweep_figure(curves: Sequence[Curve]) -> "Figure":
    """Sweeps side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 3 * len(curves), 3), dpi=150, layout="constrained")
    for curve, ax in zip(curves, figure.subplots(1, len(curves), sharey=True, squeeze=False)[0], strict=True):
        plot_sweep(curve, ax)
    return figure


def sequential_figure(results: Mapping[str, SequentialResult]) -> "Figure":
    """Every score of sequential edits, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 2.6 * len(CURVES), 3), dpi=150, layout="constrained")
    for column, ax in zip(CURVES, figure.subplots(1, len(CURVES), sharey=True), strict=True):
        plot_sequential(results, ax, column=column)
    return figure


def _line(ax: "Axes", curve: Curve, column: str, label: str, index: int) -> None:
    """One column of one curve, with its band."""
    estimates = [row[column] for row in curve.rows]
    look = index % len(_COLORS)
    low, high = ([getattr(each, end) for each in estimates] for end in ("low", "high"))
    ax.fill_between(curve.x, low, high, color=_COLORS[look], alpha=0.15, linewidth=0)
    ax.plot(
        curve.x,
        [each.mean for each in estimates],
        color=_COLORS[look],
        marker=_MARKERS[look],
        linestyle=_LINES[look],
        markersize=3.5,
        linewidth=1.3,
        label=label,
    )


def _finish(ax: "Axes", along: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(-2, 102)
    ax.set_xlabel(along)
    ax.set_ylabel("%")
    ax.label_outer()
    ax.set_title(title, fontsize="medium")
    ax.legend(fontsize="small", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
