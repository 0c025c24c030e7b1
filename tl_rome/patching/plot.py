"""Heat maps in the paper's manner: layers along x, tokens along y, subject tokens starred (figure 3)."""

import warnings
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

        _, ax = plt.subplots(figsize=(3.6 + result.scores.shape[0] * 0.07, 1.4 + 0.2 * len(result.labels)), dpi=150)
    cmap, what = _STYLE.get(result.component, ("Greys", result.component))
    n_layers = result.scores.shape[0]
    low = result.corrupted_score
    mesh = ax.pcolormesh(result.scores.T.numpy(), cmap=cmap, vmin=low, vmax=max(result.scores.max().item(), low + 1e-9))
    ax.invert_yaxis()
    ax.set_xticks([layer + 0.5 for layer in range(0, n_layers, 5)], [str(layer) for layer in range(0, n_layers, 5)])
    rows = [position + 0.5 for position in range(len(result.labels))]
    inside = range(result.subject.start, result.subject.end)
    starred = [label + "*" if position in inside else label for position, label in enumerate(result.labels)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        ax.set_yticks(rows, starred, parse_math=False)
    run = f"runs of {result.window} " if result.window > 1 else ""
    ax.set_title(title or f"Restoring {run}{what}", fontsize=9)
    ax.set_xlabel("centre of the restored layers" if result.window > 1 else "restored layer")
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label(f"P({result.answer.strip()})", parse_math=False)
    return ax
