"""How one weight differs between two models: how much, of which rank, in which directions.

With D = W' - W and its singular value decomposition D = U S V^T, rows are inputs, so for W_out a column of U is a key
direction and one of V an output direction: a ROME edit has one of each (eq. 2).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.audit.parameters import as_matrix
from tl_rome.running.matrices import MlpMatrix

KEPT = 10
"""Directions that are kept of a change."""
_RESOLUTION = 1e-7
"""Singular values below this share of the largest are not told from zero: they are roots of eigenvalues."""


@dataclass(frozen=True, eq=False)
class WeightChange:
    """The difference of one weight, that of the edited model minus that of the base."""

    name: str
    """As in "W_out of layer 5", or the parameter's name."""
    place: MlpMatrix | None
    """Which matrix of an MLP it is; None for all other parameters."""
    relative_size: float
    """||D|| / ||W|| (Frobenius), W the base's; infinite where that is zero."""
    singular_values: Float[Tensor, " values"]
    """Of D, largest first; float64."""
    rank: int
    """Singular values above what rounding to the weights' dtype could make."""
    left: Float[Tensor, "d_in kept"]
    """The first left singular vectors: what the change reads."""
    right: Float[Tensor, "d_out kept"]
    """The first right singular vectors: what it writes."""

    @property
    def energy(self) -> float:
        """Share of ||D||^2 in the first direction, in [0, 1]; 1 for a rank-one change."""
        squares = self.singular_values.square()
        return float(squares[0] / squares.sum())

    @property
    def is_low_rank(self) -> bool:
        """Whether it is of a quarter of the full rank at most, as low-rank edits are and fine-tuning is not."""
        return 0 < self.rank <= len(self.singular_values) // 4

    @property
    def kind(self) -> str:
        """In words."""
        if len(self.singular_values) == 1:
            return "vector"
        return f"rank {self.rank}" if self.is_low_rank else f"rank {self.rank} of {len(self.singular_values)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "relative_size": self.relative_size if math.isfinite(self.relative_size) else None,
            "rank": self.rank,
            "kind": self.kind,
            "energy": self.energy,
            "singular_values": self.singular_values[:KEPT].tolist(),
        }


def weight_change(name: str, place: MlpMatrix | None, base: Tensor, edited: Tensor) -> WeightChange | None:
    """What changed between two versions of a weight; None if they are equal.

    Args:
        name: Of the weight.
        place: Which matrix of an MLP it is, if one.
        base: Before.
        edited: After, in the same shape.
    """
    if base.device == edited.device and torch.equal(base, edited):
        return None
    before, after = (as_matrix(name, weight).cpu().double() for weight in (base, edited))
    difference = after - before
    if not bool(difference.any()):
        return None
    left, values, right = decompose(difference)
    rows, columns = difference.shape
    rounding = torch.finfo(edited.dtype).eps * after.square().mean().sqrt() * (math.sqrt(rows) + math.sqrt(columns))
    floor = max(float(rounding), _RESOLUTION * float(values[0]))
    size = float(difference.norm() / before.norm()) if bool(before.any()) else math.inf
    return WeightChange(name, place, size, values, int((values > floor).sum()), left[:, :KEPT], right[:, :KEPT])


def decompose(
    matrix: Float[Tensor, "rows columns"],
) -> tuple[Float[Tensor, "rows values"], Float[Tensor, " values"], Float[Tensor, "columns values"]]:
    """Left singular vectors, values and right singular vectors, from the eigenvectors of the smaller Gram matrix.

    An embedding of 50,000 rows costs one product. Values are exact to 1e-8 of the largest in float64; directions of
    smaller ones have no meaning.
    """
    if len(matrix) < matrix.shape[1]:
        right, values, left = decompose(matrix.T)
        return left, values, right
    squares, right = torch.linalg.eigh(matrix.T @ matrix)
    values, right = squares.clamp(min=0).sqrt().flip(0), right.flip(1)
    return matrix @ right / values.clamp(min=torch.finfo(values.dtype).tiny), values, right
