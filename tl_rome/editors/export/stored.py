"""The matrices of a model's MLPs in the Hugging Face checkpoint that it came from.

No model family is named here: a matrix is found by its shape and its values, and the plain model has to give the edited
model's logits before anything is written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_rome.errors import ModelMismatchError, UnsupportedModelError
from tl_rome.running.borrowed import borrowed
from tl_rome.running.forward import device_of, run
from tl_rome.running.matrices import MlpMatrix, w_out
from tl_rome.sites import HookedModel

_PROBE = 16
"""Tokens that the two models are compared on."""
_CLOSE = 0.5
"""Relative distance within which a matrix is taken for one before an edit; two random ones are 1.4 apart."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Relative error of the logits that rounding may leave; 0.1 in half precision."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A matrix of an MLP as a model of transformers keeps it."""

    name: str
    """Of the linear map's module."""
    module: nn.Module
    """The linear map."""
    weight: Float[Tensor, "d_in d_out"]
    """A view of the matrix, oriented as TransformerLens has it."""
    start: int
    """First of the module's outputs that are the matrix's: 0, but for a matrix that is fused with others."""


def stored_matrices(plain: Any, model: HookedModel, places: Iterable[MlpMatrix]) -> dict[MlpMatrix, Stored]:
    """Where a model of transformers has some matrices.

    Each is the one of its shape in its block outside attention, or of several the one that is closest to the model's:
    an edit changes a matrix little, and two different ones are far apart.

    Args:
        plain: The unedited checkpoint, in transformers.
        model: From the same checkpoint, edited or not.
        places: Which matrices are wanted.

    Raises:
        InputError: If a layer is out of range.
        UnsupportedModelError: If there is no matrix of that shape, or none that is close.
    """
    blocks = _blocks(plain, model.cfg.n_layers)
    names = {id(module): name for name, module in plain.named_modules()}
    found = {}
    for place in places:
        weight = place.weight(model).detach().cpu()
        found[place] = stored_matrix(blocks[place.layer], weight, place, f"{names[id(blocks[place.layer])]}.")
    return found


def stored_matrix(block: nn.Module, like: Float[Tensor, "d_in d_out"], place: MlpMatrix, prefix: str = "") -> Stored:
    """A matrix in one block, see `stored_matrices`.

    Args:
        block: Of the checkpoint.
        like: The matrix in the model.
        place: Which it is, for messages.
        prefix: Of the block's modules' names.

    Raises:
        UnsupportedModelError: If there is none of its shape, or none that is close.
    """
    found = [
        stored
        for name, part in block.named_modules()
        if "att" not in name
        for stored in _views(f"{prefix}{name}", part, like)
    ]
    distances = [float((stored.weight - like).norm() / like.norm()) for stored in found]
    if not found or (len(found) > 1 and not min(distances) < _CLOSE):
        raise UnsupportedModelError(
            f"{place} cannot be told apart among the {len(found)} matrices of shape {tuple(like.shape)} that the "
            "checkpoint has there outside attention; save the edit and apply its delta yourself"
        )
    return found[distances.index(min(distances))]


def check_same_logits(plain: Any, model: HookedModel, source: str) -> None:
    """Refuse a checkpoint that gives other logits with the model's matrices than the model.

    Args:
        plain: The checkpoint in transformers, with those matrices.
        model: The edited model; left as found.
        source: Name of the checkpoint, for messages.

    Raises:
        ModelMismatchError: If they differ by more than rounding.
    """
    tokens = (torch.arange(1, _PROBE + 1) * 7919 % model.cfg.d_vocab)[None]
    with borrowed(model):
        expected = run(model, tokens.to(device_of(model))).cpu().double()
    error = float((plain(tokens).logits.double() - expected).norm() / expected.norm())
    if not error <= _TOLERANCE.get(w_out(model, 0).dtype, 0.1):
        raise ModelMismatchError(
            f"with the model's MLPs, {source!r} gives other logits (relative error {error:.1e}); name the checkpoint "
            "that the model was loaded from, in the same dtype and without weight processing"
        )


def _blocks(plain: Any, n_layers: int) -> nn.ModuleList:
    """The transformer's blocks: the only list of modules that is as long as there are layers.

    Raises:
        UnsupportedModelError: If there are none, or several such lists.
    """
    found = [part for part in plain.modules() if isinstance(part, nn.ModuleList) and len(part) == n_layers]
    if len(found) != 1:
        raise UnsupportedModelError(f"{type(plain).__name__} has {len(found)} lists of {n_layers} blocks, not one")
    return found[0]


def _views(name: str, part: nn.Module, like: Float[Tensor, "d_in d_out"]) -> Iterator[Stored]:
    """The weight of a linear map, transposed or not, or the equal parts that it was fused from, where they fit."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return
    stored = weight.detach().T if isinstance(part, nn.Linear) else weight.detach()  # GPT-2's Conv1D keeps [in, out]
    width = like.shape[1]
    if len(stored) == len(like) and stored.shape[1] >= width and stored.shape[1] % width == 0:
        for start in range(0, stored.shape[1], width):
            yield Stored(name, part, stored[:, start : start + width], start)
