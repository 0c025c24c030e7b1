"""Directions of W_out that stand out from its spectrum and that its neighbours do not have: traces of an edit.

A rank-one edit adds one singular value to a matrix whose own form a bulk. Trained models have large ones as well, but
those write directions that layers nearby write too (they share one residual stream). So what the first directions of
the neighbouring layers span is taken out, W~ = W (I - Q Q^T), and the singular values of what is left are divided by
that at the edge of the bulk. This was found on, and is calibrated by, one trained model: see docs/audit.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.running.matrices import MlpMatrix, editable_matrices
from tl_rome.sites import HookedModel

THRESHOLD = 1.4
"""Ratio to the edge of the bulk from which a direction is suspicious; unedited SmolLM2-135M has 1.30 at most."""
DEVIATIONS = 5.0
"""And it exceeds the median of all layers by this many of their deviations (1.4826 times the median one)."""
_NEIGHBOURS = 2
"""Layers on each side."""
_EDGE = 50
"""The bulk begins at a singular value in this many."""
_SHARED = 128
"""One direction in this many is taken from each neighbour."""
_MOST = 16
"""Directions looked at in a layer; an edit of more facts than these is not one of few directions."""


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """What stands out in one layer's W_out."""

    place: MlpMatrix
    """The matrix."""
    ratios: Float[Tensor, " looked"]
    """Singular values of W~ over that at the edge of the bulk, largest first."""
    right: Float[Tensor, "d_model looked"]
    """Their output directions."""

    @property
    def score(self) -> float:
        """The largest ratio."""
        return float(self.ratios[0])


@torch.no_grad()
def layer_spectra(model: HookedModel) -> list[LayerSpectrum]:
    """The spectrum of every W_out that an edit can change, in order of layers.

    Costs two eigendecompositions of a d_model x d_model matrix for each layer.

    Raises:
        UnsupportedModelError: If there is none.
    """
    weights = {place: weight for place, weight in editable_matrices(model).items() if place.name == "W_out"}
    if not weights:
        raise UnsupportedModelError(
            "no layer's W_out can be read, as in quantised models and mixtures of experts, so the weights alone say "
            "nothing; audit the model as it was before it was quantised"
        )
    grams = [weight.detach().cpu().double().T @ weight.detach().cpu().double() for weight in weights.values()]
    size = model.cfg.d_model
    taken = max(1, size // _SHARED)
    first = [torch.linalg.eigh(gram)[1][:, -taken:] for gram in grams]
    found = []
    for index, (place, gram) in enumerate(zip(weights, grams, strict=True)):
        near = range(max(0, index - _NEIGHBOURS), min(len(grams), index + _NEIGHBOURS + 1))
        shared = [first[other] for other in near if other != index]
        found.append(_spectrum(place, gram, shared))
    return found


def _spectrum(
    place: MlpMatrix, gram: Float[Tensor, "d_model d_model"], shared: Sequence[Float[Tensor, "d_model taken"]]
) -> LayerSpectrum:
    if shared:
        basis = torch.linalg.qr(torch.cat(list(shared), 1))[0]
        keep = torch.eye(len(gram), dtype=gram.dtype) - basis @ basis.T
        gram = keep @ gram @ keep
    squares, right = torch.linalg.eigh(gram)
    values = squares.clamp(min=0).sqrt().flip(0)
    edge = values[max(1, len(gram) // _EDGE)].clamp(min=torch.finfo(values.dtype).tiny)
    return LayerSpectrum(place, values[:_MOST] / edge, right.flip(1)[:, :_MOST])


def threshold(spectra: Sequence[LayerSpectrum]) -> float:
    """The ratio from which a direction is suspicious in this model."""
    scores = torch.tensor([spectrum.score for spectrum in spectra])
    middle = scores.median()
    spread = 1.4826 * (scores - middle).abs().median()
    return max(THRESHOLD, float(middle + DEVIATIONS * spread))
