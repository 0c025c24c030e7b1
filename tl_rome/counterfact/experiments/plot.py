"""Curves of experiments: sweeps (figure 17) and many facts in one model (the draft's figure 10)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tl_rome.counterfact.experiments.curve import CURVES, Curve
from tl_rome.counterfact.experiments.sequential_result import FIRST, GROWTH, SequentialResult
from tl_rome.counterfact.report.tables import Estimate
from tl_rome.errors import InputError
from tl_rome.figures import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("D", "o", "s", "^", "v", "x", "P")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Lines differ in style and markers too, so that they can be distinguished in grey."""
_UNITS = {"text NLL": "nats", GROWTH: ""}
"""Of the columns that are drawn too and are no percentages."""


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
        _line(ax, curve.x, [row[column] for row in curve.rows], column, index)
    if curve.along == "epsilon":
        ax.set_xscale("log")
    n = max(row[column].n for row in curve.rows for column in CURVES)
    _finish(ax, curve.along, title or f"{curve.name}, {n} records")
    return ax


def plot_sequential(
    results: Mapping[str, SequentialResult],
    ax: "Axes | None" = None,
    *,
    column: str = "S",
    title: str | None = None,
    logarithmic: bool = False,
) -> "Axes":
    """Draw one figure over the number of facts in a model, a line per editor, with intervals as bands.

    Args:
        results: What `sequential_edits` or `mass_edits` returned, by the editor's name.
        ax: Axes to draw into; a new figure's by default.
        column: S, ES, PS or NS, or another column of their tables but entropy.
        title: Replaces the default title.
        logarithmic: Whether numbers of facts are on a logarithmic scale.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If there is no result, or no such column.
    """
    if not results:
        raise InputError("there are 0 results to draw; give at least one")
    ax = ax or new_axes(4.2, 3.0)
    for index, (name, result) in enumerate(results.items(), start=1):  # black is the colour of S
        _line(ax, result.curve.x, result.figures(column), name, index)
    if logarithmic:
        numbers = sorted({x for result in results.values() for x in result.curve.x})
        ax.set_xscale("log")
        ax.set_xticks(numbers, list(map(str, numbers)))
        ax.minorticks_off()
    _finish(ax, "facts in one model", title or column, _UNITS.get(column, "%"))
    return ax


def sweep_figure(curves: Sequence[Curve]) -> "Figure":
    """Sweeps side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 3 * len(curves), 3), dpi=150, layout="constrained")
    for curve, ax in zip(curves, figure.subplots(1, len(curves), sharey=True, squeeze=False)[0], strict=True):
        plot_sweep(curve, ax)
    return figure


def sequential_figure(results: Mapping[str, SequentialResult], *, logarithmic: bool = False) -> "Figure":
    """Scores of many facts in one model, what is forgotten, plain sentences, and growth of W, side by side."""
    from matplotlib.figure import Figure

    first = [FIRST] if all(result.first is not None for result in results.values()) else []
    columns = [*CURVES, *first, *_UNITS]
    figure = Figure(figsize=(1.2 + 2.6 * len(columns), 3), dpi=150, layout="constrained")
    for column, ax in zip(columns, panels := figure.subplots(1, len(columns)), strict=True):
        plot_sequential(results, ax, column=column, logarithmic=logarithmic)
        ax.get_legend().remove()
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", frameon=False, loc="outside right upper")
    return figure


def _line(ax: "Axes", x: Sequence[int | float], estimates: Sequence[Estimate], label: str, index: int) -> None:
    """One column of one curve, with its band."""
    look = index % len(_COLORS)
    low, high = ([getattr(each, end) for each in estimates] for end in ("low", "high"))
    ax.fill_between(x, low, high, color=_COLORS[look], alpha=0.15, linewidth=0)
    ax.plot(
        x,
        [each.mean for each in estimates],
        color=_COLORS[look],
        marker=_MARKERS[look],
        linestyle=_LINES[look],
        markersize=3.5,
        linewidth=1.3,
        label=label,
    )


def _finish(ax: "Axes", along: str, title: str, unit: str = "%") -> None:
    from matplotlib.ticker import MaxNLocator

    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(along)
    if unit == "%":
        ax.set_ylim(-2, 102)
        ax.set_ylabel(unit)
        ax.label_outer()
    else:
        ax.set_ylim(bottom=0)
        ax.set_ylabel(unit)
    ax.set_title(title, fontsize="medium")
    ax.legend(fontsize="small", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
