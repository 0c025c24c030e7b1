"""Heat maps in the paper's manner: layers along x, tokens along y, subject tokens starred (figure 1 e, f, g)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.figures import drawable, new_axes
from tl_rome.patching.result import TraceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tl_rome.patching.averaging.average import AverageTrace

_STYLE = {
    "resid_post": ("Purples", "single hidden states"),
    "mlp_out": ("Greens", "MLP outputs"),
    "attn_out": ("Reds", "attention outputs"),
}
"""Colour map and title of each component; colours as in the paper, all monotone in grey."""


def plot_trace(result: TraceResult, ax: "Axes | None" = None, *, title: str | None = None) -> "Axes":
    """Draw one trace; colour is the score, white that of the run that was patched, dark the strongest effect.

    Args:
        result: What `causal_trace` returned.
        ax: Axes to draw into; a new figure's by default.
        title: Replaces the default title.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If the trace has units, which need a map each.
    """
    if result.units:
        raise InputError("this trace has a third axis of units; draw `result.of_unit(unit)` for the ones you want")
    if ax is None:
        ax = new_axes(*figure_size(result))
    heat_map(
        ax,
        result.scores,
        starred_labels(result),
        result.component,
        base=result.base_score,
        falling=result.direction == "noising",
        name=_score_name(result),
    )
    ax.set_title(title or patched(result), fontsize="medium")
    ax.set_xlabel(layer_label(result))
    return ax


def heat_map(
    ax: "Axes",
    values: Float[Tensor, "layer row"],
    rows: Sequence[str],
    component: str,
    *,
    base: float,
    name: str,
    falling: bool = False,
) -> None:
    """Draw values with layers along x in a component's colours, with a bar; NaN is hatched.

    Args:
        ax: Axes to draw into.
        values: What the colours say.
        rows: What the rows are, from the top.
        component: Chooses the colours.
        base: Value drawn in white.
        name: Label of the colour bar.
        falling: Whether values below the base are drawn dark, instead of those above.
    """
    n_layers = len(values)
    finite = values[values.isfinite()].tolist()
    low, high = (min([base - 1e-9, *finite]), base) if falling else (base, max([base + 1e-9, *finite]))
    cmap = _style(component)[0] + ("_r" if falling else "")
    if len(finite) < values.numel():
        ax.patch.set(hatch="////", edgecolor="0.8")
    mesh = ax.pcolormesh(values.T.numpy(), cmap=cmap, vmin=low, vmax=high)
    ax.set_ylim(len(rows), 0)  # not inverted: axes that share their y axis would invert it once each
    ax.set_xticks([layer + 0.5 for layer in range(0, n_layers, 5)], [str(layer) for layer in range(0, n_layers, 5)])
    ax.set_yticks([row + 0.5 for row in range(len(rows))], [drawable(row) for row in rows], parse_math=False)
    ax.tick_params(axis="y", length=0)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, aspect=25)
    bar.set_label(drawable(name), parse_math=False)
    bar.outline.set_visible(False)  # type: ignore[operator]


def patched(result: "TraceResult | AverageTrace") -> str:
    """Title that says what a trace patches."""
    verb = "Corrupting" if result.direction == "noising" else "Restoring"
    run = f"runs of {result.window} " if result.window > 1 else ""
    severed = f", {result.severed} severed" if result.severed else ""
    return f"{verb} {run}{_style(result.component)[1]}{severed}"


def layer_label(result: "TraceResult | AverageTrace") -> str:
    """What the layers along the x axis are."""
    what = "corrupted" if result.direction == "noising" else "restored"
    return f"centre of the {what} layers" if result.window > 1 else f"{what} layer"


def component_color(component: str) -> tuple[float, float, float, float]:
    """A strong colour of the component's map, for lines."""
    from matplotlib import colormaps

    return colormaps[_style(component)[0]](0.75)


def starred_labels(result: TraceResult) -> list[str]:
    """The tokens' labels, those of the subject with a star."""
    inside = range(result.subject.start, result.subject.end)
    return [label + "*" if position in inside else label for position, label in enumerate(result.labels)]


def figure_size(result: TraceResult) -> tuple[float, float]:
    """Width and height, in inches, at which a trace's labels have room."""
    n_layers, positions = result.scores.shape
    return 3.6 + 0.07 * n_layers, 1.2 + 0.22 * positions


def _score_name(result: TraceResult) -> str:
    prob = f"P({result.answer.strip()})"
    return {"prob": prob, "logprob": f"log {prob}"}.get(result.metric, result.metric)


def _style(component: str) -> tuple[str, str]:
    return _STYLE.get(component, ("Greys", component))
