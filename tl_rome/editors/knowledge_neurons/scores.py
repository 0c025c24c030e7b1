"""What an attribution returns, and which neurons are chosen by it.

Choices are relative: a neuron counts in a prompt if its score is above a share of the prompt's largest, over all layers
(strictly, as in the code of the knowledge-neurons library; Dai et al. write "at least"). Over several prompts of one
fact those neurons are kept that count in more than a share of them, which drops what belongs to the wording.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Share
from tl_rome.errors import InputError, NumericsError

if TYPE_CHECKING:
    import pandas

NeuronSite = Literal["pre", "post"]
"""Where a neuron's value is read: before the activation (`mlp.hook_pre`: the output of W_in, of W_gate in gated MLPs)
or after it (`mlp.hook_post`, the input of W_out)."""
Points = Literal["ends", "left"]
"""Where the path from 0 to a neuron's value is sampled: from 0 to 1 with both ends in, or without the 1."""


class Neuron(NamedTuple):
    """One neuron of an MLP: a row of its W_out."""

    layer: int
    """Block index."""
    neuron: int
    """Row of W_out."""


@dataclass(frozen=True, eq=False, repr=False)
class NeuronScores:
    """How much of an answer's probability each neuron accounts for, at the prompt's last position.

    Raises:
        NumericsError: If a score is not finite.
    """

    scores: Float[Tensor, "n_layers d_mlp"]
    """Integrated gradients of the probability; float64, on the CPU. They add up, layer by layer, to about what the
    probability loses when the layer's neurons are set to 0 there."""
    activations: Float[Tensor, "n_layers d_mlp"]
    """The neurons' values; float64, on the CPU."""
    prob: float
    """Probability of the answer: the mean over its tokens, each as the next one after the prompt."""
    predicted: int
    """The token that the model thinks most likely there."""
    prompt: str
    """The prompt, without BOS."""
    answer: tuple[str, ...]
    """One readable string per token of the answer."""
    site: NeuronSite
    """Where values were read and scaled."""
    points: Points
    """Where the path was sampled."""
    steps: int
    """At how many points."""
    model: str
    """Fingerprint of the model."""

    def __post_init__(self) -> None:
        if not bool(self.scores.isfinite().all() and self.activations.isfinite().all()):
            raise NumericsError(f"a score of {self.prompt!r} is not finite; look for NaN or inf weights")

    def above(self, threshold: Share = 0.2) -> list[Neuron]:
        """The neurons whose score is above this share of the largest; lower layers first, none if no score is above 0.

        Args:
            threshold: Share of the largest score over all layers, itself not enough.
        """
        largest = self.scores.max()
        chosen = (self.scores > threshold * largest).nonzero() if largest > 0 else torch.zeros(0, 2)
        return [Neuron(int(layer), int(neuron)) for layer, neuron in chosen]

    def to_frame(self) -> "pandas.DataFrame":
        """One row per neuron, largest score first: columns `layer`, `neuron`, `score`, `activation`."""
        import pandas

        layers, neurons = torch.meshgrid(*map(torch.arange, self.scores.shape), indexing="ij")
        columns = {"layer": layers, "neuron": neurons, "score": self.scores, "activation": self.activations}
        order = self.scores.flatten().argsort(descending=True, stable=True)
        return pandas.DataFrame({name: column.flatten()[order].numpy() for name, column in columns.items()})

    def __repr__(self) -> str:
        """One line; the fields themselves are `vars(scores)`."""
        layer, neuron = (int(index) for index in torch.unravel_index(self.scores.argmax(), self.scores.shape))
        shape = " x ".join(map(str, self.scores.shape))
        return (
            f"NeuronScores({''.join(self.answer)!r} after {self.prompt!r}, {self.site}: {shape}, largest "
            f"{self.scores[layer, neuron].item():.3g} at layer {layer} neuron {neuron}, probability {self.prob:.3g})"
        )


def shared_neurons(several: Sequence[NeuronScores], threshold: Share = 0.2, share: Share = 0.4) -> list[Neuron]:
    """The neurons that are above a threshold in more than a share of several prompts, in the order they are first met.

    Args:
        several: Scores of one fact's prompts.
        threshold: See `NeuronScores.above`.
        share: Of the prompts, itself not enough.

    Raises:
        InputError: If there are no scores, or they are of different models or settings.
    """
    kinds = {(scores.model, scores.site, scores.points, scores.steps) for scores in several}
    if len(kinds) != 1:
        raise InputError(
            f"{len(several)} attributions of {len(kinds)} models or settings cannot be compared; give those of one "
            "model, made with the same site, points and steps"
        )
    counts = Counter(neuron for scores in several for neuron in scores.above(threshold))
    return [neuron for neuron, count in counts.items() if count > share * len(several)]
