"""A summary as a picture: points with intervals, a group for each column and a colour and marker for each editor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tl_rome.counterfact.metrics.columns import RATES, SCORE
from tl_rome.counterfact.report.tables import SummaryTables
from tl_rome.errors import InputError
from tl_rome.figures import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("0.4", *(f"C{place}" for place in range(10) if place != 7))
"""Grey is the unedited model alone."""
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
"""Editors differ in their markers too, so that they can be distinguished in grey."""
_SPREAD = 0.7
"""Share of a group's width that its points take."""


def plot_summary(
    summary: SummaryTables,
    ax: "Axes | None" = None,
    *,
    columns: Sequence[str] = (*RATES, SCORE),
    title: str | None = None,
) -> "Axes":
    """Draw means with their intervals by column and editor.

    Args:
        summary: What `summarize` returned.
        ax: Axes to draw into; a new figure's by default.
        columns: Names of `COLUMNS` that are percentages; a figure that was not measured is left out.
        title: Replaces the default title, which says n and what the intervals are.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If a column is unknown, or there is none.
    """
    known = next(iter(summary.rows.values()), {})
    unknown = [name for name in columns if name not in known]
    if unknown or not columns:
        raise InputError(f"columns to draw are {tuple(columns)}; name some of {', '.join(known)}")
    if ax is None:
        ax = new_axes(7.0, 3.0)
    step = _SPREAD / len(summary.rows)
    for index, (name, row) in enumerate(summary.rows.items()):
        shift = (index - (len(summary.rows) - 1) / 2) * step
        drawn = [(place + shift, row[column]) for place, column in enumerate(columns) if row[column].n]
        # A percentile interval of a skewed figure, as S can be, need not hold the mean.
        below = [max(0.0, estimate.mean - estimate.low) for _, estimate in drawn]
        above = [max(0.0, estimate.high - estimate.mean) for _, estimate in drawn]
        ax.errorbar(
            [place for place, _ in drawn],
            [estimate.mean for _, estimate in drawn],
            yerr=[below, above],
            fmt=_MARKERS[index % len(_MARKERS)],
            color=_COLORS[index % len(_COLORS)],
            capsize=2,
            markersize=5,
            label=name,
        )
    ax.set_xticks(range(len(columns)), list(columns))
    ax.set_ylabel("%")
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    n = max(estimate.n for row in summary.rows.values() for estimate in row.values())
    ax.set_title(title or f"n = {n} records; mean and {summary.confidence:.0%} interval", fontsize="medium")
    return ax


def summary_figure(summary: SummaryTables) -> "Figure":
    """`plot_summary` in a figure of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), dpi=150, layout="constrained")
    plot_summary(summary, figure.subplots())
    return figure
