"""Where the neurons of an answer are: their scores over the layers."""

from typing import TYPE_CHECKING

from tl_rome.arguments import Share
from tl_rome.editors.knowledge_neurons.scores import NeuronScores
from tl_rome.figures import drawable, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 0.01
"""Share of the largest absolute score below which a neuron is not drawn: nearly all of them, on the line of 0."""


def plot_neurons(
    scores: NeuronScores, ax: "Axes | None" = None, *, threshold: Share = 0.2, title: str | None = None
) -> "Axes":
    """Draw one dot per neuron, layers along x, scores along y, dark above the threshold.

    Args:
        scores: What `attribute_neurons` returned.
        ax: Axes to draw into; a new figure's by default.
        threshold: Share of the largest score, see `NeuronScores.above`; drawn as a line.
        title: Replaces the default title.

    Returns:
        The axes; nothing is shown or saved.
    """
    n_layers = len(scores.scores)
    ax = ax or new_axes(3.4 + 0.07 * n_layers, 3.2)
    values, chosen = scores.scores, scores.above(threshold)
    limit = threshold * max(0.0, values.max().item())
    layers, neurons = (values.abs() > _LEAST * values.abs().max()).nonzero(as_tuple=True)
    shown = values[layers, neurons]
    for dark, name in ((False, "other neurons"), (True, "chosen neurons")):
        of_kind = (shown > limit) == dark
        color, marker = ("#0072b2", "o") if dark else ("0.7", ".")
        style = {"linestyle": "", "marker": marker, "color": color, "markersize": 4 if dark else 3}
        ax.plot(layers[of_kind].tolist(), shown[of_kind].tolist(), label=name, **style)
    ax.axhline(limit, color="0.5", linewidth=0.5, linestyle="--")
    ax.axhline(0, color="0.5", linewidth=0.5)
    ax.set_xlim(-0.5, n_layers - 0.5)
    ax.set_xlabel("layer")
    ax.set_ylabel("integrated gradient of the probability")
    counted = f"{len(chosen)} neuron{'' if len(chosen) == 1 else 's'} above {threshold:.0%} of the largest"
    ax.set_title(title or f"{drawable(''.join(scores.answer).strip())}: {counted}", fontsize="medium", parse_math=False)
    ax.legend(fontsize="small", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
