"""Heat maps in the paper's manner: layers along x, tokens along y, subject tokens starred (figure 3)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from tl_rome.patching.result import TraceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = {
    "resid_post": ("Purples", "single hidden states"),
    "mlp_out": ("Greens", "MLP outputs"),
    "attn_out": ("Reds", "attention outputs"),
}
"""Colour map and title of each component; colours as in the paper, all monotone in grey."""


def plot_trace(result: TraceResult, ax: "Axes | None" = None, *, title: str | None = None) -> "Axes":
    """Draw one trace; colour is the score, from the corrupted score (white) upwards.

    Args:
        result: What `causal_trace` returned.
        ax: Axes to draw into; a new figure's by default.
        title: Replaces the default title.

    Returns:
        The axes; nothing is shown or saved.
    """
    if ax is None:
        ax = new_axes(*figure_size(result))
    name = f"P({result.answer.strip()})"
    heat_map(ax, result.scores, starred_labels(result), result.component, low=result.corrupted_score, name=name)
    ax.set_title(title or restored(result.component, result.window), fontsize="medium")
    ax.set_xlabel(layer_label(result.window))
    return ax


def heat_map(
    ax: "Axes",
    values: Float[Tensor, "layer row"],
    rows: Sequence[str],
    component: str,
    *,
    low: float,
    name: str,
) -> None:
    """Draw values with layers along x in a component's colours, `low` in white, with a bar; NaN is left blank.

    Args:
        ax: Axes to draw into.
        values: What the colours say.
        rows: What the rows are, from the top.
        component: Chooses the colours.
        low: Value drawn in white.
        name: Label of the colour bar.
    """
    n_layers = len(values)
    finite = values[values.isfinite()]
    high = max(finite.max().item() if len(finite) else low, low + 1e-9)
    mesh = ax.pcolormesh(values.T.numpy(), cmap=_style(component)[0], vmin=low, vmax=high)
    ax.set_ylim(len(rows), 0)  # not inverted: axes that share their y axis would invert it once each
    ax.set_xticks([layer + 0.5 for layer in range(0, n_layers, 5)], [str(layer) for layer in range(0, n_layers, 5)])
    ax.set_yticks([row + 0.5 for row in range(len(rows))], [drawable(row) for row in rows], parse_math=False)
    ax.tick_params(axis="y", length=0)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, aspect=25)
    bar.set_label(drawable(name), parse_math=False)
    bar.outline.set_visible(False)  # type: ignore[operator]


def restored(component: str, window: int) -> str:
    """Title that says what a trace restores."""
    run = f"runs of {window} " if window > 1 else ""
    return f"Restoring {run}{_style(component)[1]}"


def layer_label(window: int) -> str:
    """What the layers along the x axis are."""
    return "centre of the restored layers" if window > 1 else "restored layer"


def component_color(component: str) -> tuple[float, float, float, float]:
    """A strong colour of the component's map, for lines."""
    from matplotlib import colormaps

    return colormaps[_style(component)[0]](0.75)


def starred_labels(result: TraceResult) -> list[str]:
    """The tokens' labels, those of the subject with a star."""
    inside = range(result.subject.start, result.subject.end)
    return [label + "*" if position in inside else label for position, label in enumerate(result.labels)]


def new_axes(width: float, height: float) -> "Axes":
    """Axes of a new figure, in inches."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), dpi=150, layout="constrained")
    return ax


def figure_size(result: TraceResult) -> tuple[float, float]:
    """Width and height, in inches, at which a trace's labels have room."""
    n_layers, positions = result.scores.shape
    return 3.6 + 0.07 * n_layers, 1.2 + 0.22 * positions


def drawable(text: str) -> str:
    r"""Escape what the current fonts cannot draw (`\u6771`), where matplotlib would draw a box and warn each time."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in FontProperties().get_family()]
    return "".join(
        char if any(font.get_char_index(ord(char)) for font in fonts) else char.encode("unicode_escape").decode()
        for char in text
    )


def _style(component: str) -> tuple[str, str]:
    return _STYLE.get(component, ("Greys", component))
