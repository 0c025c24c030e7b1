"""Average causal effects in the paper's manner: heat maps by token role (figure 2), lines with bands (figure 7)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tl_rome.arguments import Finite
from tl_rome.errors import InputError
from tl_rome.figures import new_axes
from tl_rome.patching.averaging.average import AverageTrace
from tl_rome.patching.averaging.roles import ROLES, Role, role_index
from tl_rome.patching.plots.trace import component_color, heat_map, layer_label, panels, patched

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STARRED = [f"{role}*" if "subject" in role else role for role in ROLES]
_LINES = (":", (0, (1, 3)), "-", "-.", (0, (3, 1, 1, 1, 1, 1)), "--")
_MARKERS = ("o", "s", "D", "^", "v", "x")
"""Lines differ in style and markers too, so that they can be told apart in grey."""


def plot_average(
    average: AverageTrace, ax: "Axes | None" = None, *, title: str | None = None, vmax: Finite | None = None
) -> "Axes":
    """Draw average indirect effects by layer and token role; white is no effect, hatched a role that is absent.

    Args:
        average: What `average_traces` returned.
        ax: Axes to draw into; a new figure's by default.
        title: Replaces the default title.
        vmax: Effect that is drawn darkest, for one scale in several figures; by default the strongest.

    Returns:
        The axes; nothing is shown or saved.
    """
    if ax is None:
        ax = new_axes(3.8 + 0.07 * len(average.effects), 2.4)
    falling = average.sign < 0
    name = "average indirect effect"
    colours = {"base": 0.0, "darkest": vmax, "falling": falling, "name": name, "pale": "0"}
    heat_map(ax, average.effects, _STARRED, average.component, **colours)
    ax.set_title(title or _title(average), fontsize="medium")
    ax.set_xlabel(layer_label(average))
    return ax


def plot_averages(
    averages: Sequence[AverageTrace], axes: "Sequence[Axes] | None" = None, *, shared_scale: bool = False
) -> "list[Axes]":
    """Draw several averages side by side, as figure 2 does hidden states, MLPs and attention; roles are named once.

    Args:
        averages: One for each panel.
        axes: As many axes to draw into; a new figure's by default.
        shared_scale: Whether one colour is one effect in all panels; otherwise the strongest of each is drawn darkest.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If there are no averages, another number of axes, or averages of both directions on one scale.
    """
    if not averages or (axes is not None and len(axes) != len(averages)):
        raise InputError(f"{len(averages)} averages need as many axes and at least one; got axes {axes}")
    vmax, sign = None, averages[0].sign
    if shared_scale:
        if any(average.sign != sign for average in averages):
            raise InputError("a shared scale needs averages of one direction; draw them without it")
        vmax = sign * max((sign * average.effects).nan_to_num(0.0).max().item() for average in averages)
    if axes is None:
        import matplotlib.pyplot as plt

        width = 1.4 + len(averages) * (2.2 + 0.05 * len(averages[0].effects))
        axes = panels(plt.figure(figsize=(width, 2.6), dpi=150, layout="constrained"), len(averages), sharey=True)
    for average, ax in zip(averages, axes, strict=True):
        plot_average(average, ax, title=f"{patched(average)}\n{_prompts(average)}", vmax=vmax)
    return list(axes)


def plot_roles(
    average: AverageTrace,
    ax: "Axes | None" = None,
    *,
    roles: Sequence[Role] = ("first subject token", "last subject token", "first subsequent token", "last token"),
    title: str | None = None,
) -> "Axes":
    """Draw average indirect effects over layers, one line per role, with the intervals over prompts as bands.

    Args:
        average: What `average_traces` returned.
        ax: Axes to draw into; a new figure's by default.
        roles: Lines to draw; roles that no prompt has are left out.
        title: Replaces the default title.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If a role is unknown.
    """
    ax = ax or new_axes(3.4 + 0.07 * len(average.effects), 3.2)
    for place, role in enumerate(roles):
        index = role_index(role)
        if average.counts[index]:
            _line(ax, average, index, place / max(1, len(roles) - 1))
    ax.axhline(0, color="0.5", linewidth=0.5)
    ax.set_xlim(0, len(average.effects) - 1)
    ax.set_xlabel(layer_label(average))
    ax.set_ylabel("average indirect effect")
    ax.set_title(title or f"{_title(average)} ({average.confidence:.0%} bands)", fontsize="medium")
    ax.legend(fontsize="small", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _title(average: AverageTrace) -> str:
    return f"{patched(average)}, {_prompts(average)}"


def _prompts(average: AverageTrace) -> str:
    return f"{average.n} prompt{'s' if average.n > 1 else ''}"


def _line(ax: "Axes", average: AverageTrace, index: int, shade: float) -> None:
    """One role's line and band, in the component's colour, lighter to darker with `shade`."""
    from matplotlib.colors import to_rgb

    layers = range(len(average.effects))
    paleness = 0.55 * (1 - shade)
    color = tuple(channel + (1 - channel) * paleness for channel in to_rgb(component_color(average.component)))
    ax.fill_between(
        layers, average.low[:, index].numpy(), average.high[:, index].numpy(), color=color, alpha=0.25, linewidth=0
    )
    ax.plot(
        layers,
        average.effects[:, index].numpy(),
        color=color,
        linestyle=_LINES[index],
        marker=_MARKERS[index],
        markersize=3,
        linewidth=1.2,
        label=_STARRED[index],
    )
