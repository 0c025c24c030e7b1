"""Heat maps in the paper's manner: layers along x, tokens along y, subject tokens starred (figure 3)."""

from typing import TYPE_CHECKING

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
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=figure_size(result), dpi=150, layout="constrained")
    cmap, what = _STYLE.get(result.component, ("Greys", result.component))
    n_layers = result.scores.shape[0]
    low = result.corrupted_score
    mesh = ax.pcolormesh(result.scores.T.numpy(), cmap=cmap, vmin=low, vmax=max(result.scores.max().item(), low + 1e-9))
    ax.set_ylim(len(result.labels), 0)  # not inverted: axes that share their y axis would invert it once each
    ax.set_xticks([layer + 0.5 for layer in range(0, n_layers, 5)], [str(layer) for layer in range(0, n_layers, 5)])
    rows = [position + 0.5 for position in range(len(result.labels))]
    inside = range(result.subject.start, result.subject.end)
    starred = [label + "*" if position in inside else label for position, label in enumerate(result.labels)]
    ax.set_yticks(rows, [_drawable(label) for label in starred], parse_math=False)
    ax.tick_params(axis="y", length=0)
    run = f"runs of {result.window} " if result.window > 1 else ""
    ax.set_title(title or f"Restoring {run}{what}", fontsize="medium")
    ax.set_xlabel("centre of the restored layers" if result.window > 1 else "restored layer")
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, aspect=25)
    bar.set_label(_drawable(f"P({result.answer.strip()})"), parse_math=False)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return ax


def figure_size(result: TraceResult) -> tuple[float, float]:
    """Width and height, in inches, at which a trace's labels have room."""
    n_layers, positions = result.scores.shape
    return 3.6 + 0.07 * n_layers, 1.2 + 0.22 * positions


def _drawable(text: str) -> str:
    r"""Escape what the current fonts cannot draw (`\u6771`), where matplotlib would draw a box and warn each time."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in FontProperties().get_family()]
    return "".join(
        char if any(font.get_char_index(ord(char)) for font in fonts) else char.encode("unicode_escape").decode()
        for char in text
    )
