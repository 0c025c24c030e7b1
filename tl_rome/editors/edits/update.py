"""What an edit adds to one matrix of an MLP: a product of two thin matrices, or any matrix.

Matrices are [d_in, d_out] and rows are inputs, so the paper's Λ (C^-1 k*)^T (eq. 2) for W_out is `left` (keys) times
`right` (values) transposed here, both with one column.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Whole
from tl_rome.errors import InputError, ModelMismatchError, NumericsError
from tl_rome.running.arithmetic import in_float64
from tl_rome.running.matrices import MatrixName, MlpMatrix

if TYPE_CHECKING:
    from transformer_lens import FactoredMatrix


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """A change of one matrix of low rank; an input x adds (x @ left) @ right.T to the matrix's output.

    Raises:
        InputError: If the two factors differ in rank, or have none.
        NumericsError: If a value is not finite.
    """

    layer: Whole
    """Block index."""
    left: Float[Tensor, "d_in rank"]
    """For ROME one column: the key direction, C^-1 k* up to scale, which selects the subject."""
    right: Float[Tensor, "d_out rank"]
    """For ROME one column: the value direction."""
    matrix: MatrixName = "W_out"
    """Which matrix of the layer."""

    def __post_init__(self) -> None:
        if self.left.shape[1] != self.right.shape[1] or not self.left.shape[1]:
            shapes = f"left {tuple(self.left.shape)}, right {tuple(self.right.shape)}"
            raise InputError(f"the factors of an update need as many columns as each other, at least one; got {shapes}")
        _check_finite(self)

    @classmethod
    def rank_one(cls, layer: Whole, u: Float[Tensor, " d_mlp"], v: Float[Tensor, " d_model"]) -> "LowRankUpdate":
        """The change u v^T of W_out, as ROME makes it.

        Raises:
            NumericsError: If a value is not finite.
        """
        return cls(layer, u[:, None], v[:, None])

    @property
    def place(self) -> MlpMatrix:
        """The matrix that it changes."""
        return MlpMatrix(self.layer, self.matrix)

    @property
    def rank(self) -> int:
        """Number of columns of the factors."""
        return self.left.shape[1]

    @property
    def delta(self) -> Float[Tensor, "d_in d_out"]:
        """The change of the matrix; float64."""
        return self.left.double() @ self.right.double().T

    @property
    def factored(self) -> "FactoredMatrix":
        """The same as TransformerLens's product of two thin matrices, whose norm and SVD need no full one."""
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(self.left.double(), self.right.double().T)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it, by field name."""
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """Any change of one matrix, as fine-tuning makes it.

    Raises:
        NumericsError: If a value is not finite.
    """

    layer: Whole
    """Block index."""
    change: Float[Tensor, "d_in d_out"]
    """What is added to the matrix."""
    matrix: MatrixName = "W_out"
    """Which matrix of the layer."""

    def __post_init__(self) -> None:
        _check_finite(self)

    @property
    def place(self) -> MlpMatrix:
        """The matrix that it changes."""
        return MlpMatrix(self.layer, self.matrix)

    @property
    def delta(self) -> Float[Tensor, "d_in d_out"]:
        """The change of the matrix; float64."""
        return self.change.double()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it, by field name."""
        return {"change": self.change}


Update = LowRankUpdate | DenseUpdate


def update_from(place: MlpMatrix, tensors: Mapping[str, Tensor]) -> Update:
    """The update whose `tensors` these are.

    Raises:
        KeyError: If they are not those of any update.
    """
    if "change" in tensors:
        return DenseUpdate(place.layer, tensors["change"], place.name)
    return LowRankUpdate(place.layer, tensors["left"], tensors["right"], place.name)


def check_places(updates: Iterable[Update]) -> None:
    """Refuse several updates of one matrix.

    Raises:
        InputError: If there are.
    """
    places = [update.place for update in updates]
    if twice := sorted({str(place) for place in places if places.count(place) > 1}):
        raise InputError(f"an edit has one update per matrix at most, got several of {twice[0]}; compose several edits")


def check_shape(update: Update, shape: Sequence[int]) -> None:
    """Refuse an update of another size than its matrix; torch would spread a single number over all of it.

    Raises:
        ModelMismatchError: If it is.
    """
    d_in, d_out = shape
    dense = isinstance(update, DenseUpdate)
    wanted = {"change": (d_in, d_out)} if dense else {"left": (d_in, update.rank), "right": (d_out, update.rank)}
    for name, part in update.tensors.items():
        if tuple(part.shape) != wanted[name]:
            raise ModelMismatchError(
                f"the update of {update.place} has {name} of shape {tuple(part.shape)}, where this model asks for "
                f"{wanted[name]}; use it on the model that it was made for"
            )


def with_updates(weight: Float[Tensor, "d_in d_out"], updates: Iterable[Update]) -> Float[Tensor, "d_in d_out"]:
    """A matrix as applying updates of it one after another leaves it: each sum in float64, rounded to its dtype."""
    for update in updates:
        exact = in_float64(weight)
        weight = (exact + _delta_on(exact.device, update)).to(weight)
    return weight


def _delta_on(device: torch.device, update: Update) -> Float[Tensor, "d_in d_out"]:
    """`Update.delta` on a device, to the bit: one product per element is the same everywhere, a sum of them is not."""
    if isinstance(update, LowRankUpdate) and update.rank == 1:
        return update.left.to(device).double() * update.right.to(device).double().T
    return update.delta.to(device)


def _check_finite(update: Update) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in update.tensors.values()):
        raise NumericsError(f"the update of {update.place} is not finite")
