"""What an edit adds to one layer's W_out: a rank-one matrix, or any matrix.

W_out is [d_mlp, d_model] and rows are keys, so the paper's Λ (C^-1 k*)^T (eq. 2) is the outer product of u (keys)
and v (values) here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Whole
from tl_rome.errors import ModelMismatchError, NumericsError

if TYPE_CHECKING:
    from transformer_lens import FactoredMatrix


@dataclass(frozen=True, eq=False)
class RankOneUpdate:
    """A rank-one change of one layer's W_out.

    Raises:
        NumericsError: If a value is not finite.
    """

    layer: Whole
    """Block index."""
    u: Float[Tensor, " d_mlp"]
    """Key direction, C^-1 k* up to scale; selects the subject."""
    v: Float[Tensor, " d_model"]
    """Value direction; what is added to the MLP's output is (k . u) v."""

    def __post_init__(self) -> None:
        _check_finite(self)

    @property
    def delta(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change of W_out; float64."""
        return torch.outer(self.u.double(), self.v.double())

    @property
    def factored(self) -> "FactoredMatrix":
        """The same as TransformerLens's product of two thin matrices, whose norm and SVD need no full one."""
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(self.u.double()[:, None], self.v.double()[None])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it, by field name."""
        return {"u": self.u, "v": self.v}


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """Any change of one layer's W_out, as fine-tuning makes it.

    Raises:
        NumericsError: If a value is not finite.
    """

    layer: Whole
    """Block index."""
    change: Float[Tensor, "d_mlp d_model"]
    """What is added to W_out."""

    def __post_init__(self) -> None:
        _check_finite(self)

    @property
    def delta(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change of W_out; float64."""
        return self.change.double()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it, by field name."""
        return {"change": self.change}


Update = RankOneUpdate | DenseUpdate


def update_from(layer: int, tensors: Mapping[str, Tensor]) -> Update:
    """The update whose `tensors` these are.

    Raises:
        KeyError: If they are not those of any update.
    """
    if "change" in tensors:
        return DenseUpdate(layer, tensors["change"])
    return RankOneUpdate(layer, tensors["u"], tensors["v"])


def check_shape(update: Update, weight: Float[Tensor, "d_mlp d_model"]) -> None:
    """Refuse an update of another size than its W_out; torch would spread a single number over all of it.

    Raises:
        ModelMismatchError: If it is.
    """
    d_mlp, d_model = weight.shape
    wanted = {"u": (d_mlp,), "v": (d_model,), "change": (d_mlp, d_model)}
    for name, part in update.tensors.items():
        if tuple(part.shape) != wanted[name]:
            raise ModelMismatchError(
                f"the update of layer {update.layer} has {name} of shape {tuple(part.shape)}, where this model's W_out "
                f"asks for {wanted[name]}; use it on the model that it was made for"
            )


def _check_finite(update: Update) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in update.tensors.values()):
        raise NumericsError(f"the update of layer {update.layer} is not finite")
