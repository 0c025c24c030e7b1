"""An edited model as a plain Hugging Face folder, which any library loads.

Neither TransformerLens class can be saved as the checkpoint it came from: a bridge has rewired it, and for
HookedTransformer there is no way back. So the checkpoint is read again and gets the matrices of the model's MLPs. No
model family is named here: a matrix is found by its shape and its values, and before anything is written the plain
model has to give the edited model's logits, so that nothing but an edit of that very checkpoint is written.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_rome.errors import ModelMismatchError, UnsupportedModelError
from tl_rome.models.loading import load_hugging_face
from tl_rome.running.borrowed import borrowed
from tl_rome.running.forward import device_of, run
from tl_rome.running.matrices import MlpMatrix, mlp_matrices, w_out
from tl_rome.sites import HookedModel
from tl_rome.storage.writing import whole_folder

_PROBE = 16
"""Tokens that the exported model is compared on."""
_CLOSE = 0.5
"""Relative distance within which a matrix is taken for one before an edit; two random ones are 1.4 apart."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Relative error of its logits that rounding may leave; 0.1 in half precision."""


@torch.no_grad()
def export_model(model: HookedModel, source: str, folder: str | Path) -> Path:
    """Write a model with the edits that are applied to it in Hugging Face layout.

    Args:
        model: Left as found; from the same source, unprocessed.
        source: Name or folder that the model was loaded from, as `load_model` takes it.
        folder: Where weights, config and tokenizer appear once all are written.

    Returns:
        The folder; `load_model` and transformers load it.

    Raises:
        UnsupportedModelError: If a matrix of its MLPs cannot be told apart from others.
        ModelMismatchError: If the model is not the source with edits of MLPs.
        ModelUnavailableError: If the source cannot be read.
        StorageError: If the folder cannot be written.
    """
    plain, tokenizer = load_hugging_face(source, w_out(model, 0).dtype, None, False)
    for layer, block in enumerate(_blocks(plain, model.cfg.n_layers)):
        for place in mlp_matrices(model, layer):
            weight = place.weight(model).cpu()
            _stored(block, weight, place).copy_(weight)
    tokens = (torch.arange(1, _PROBE + 1) * 7919 % model.cfg.d_vocab)[None]
    with borrowed(model):
        expected = run(model, tokens.to(device_of(model))).cpu().double()
    error = float((plain(tokens).logits.double() - expected).norm() / expected.norm())
    if not error <= _TOLERANCE.get(w_out(model, 0).dtype, 0.1):
        raise _mismatch(f"with the model's MLPs, {source!r} gives other logits (relative error {error:.1e})")
    with whole_folder(Path(folder)) as place:
        plain.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return Path(folder)


def _mismatch(what: str) -> ModelMismatchError:
    return ModelMismatchError(
        f"{what}; name the checkpoint that the model was loaded from, in the same dtype and without weight processing"
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


def _stored(block: nn.Module, like: Float[Tensor, "d_in d_out"], place: MlpMatrix) -> Float[Tensor, "d_in d_out"]:
    """A view of a matrix of an MLP in a block of transformers, oriented as TransformerLens has it.

    It is the one of its shape outside attention, or of several the one that is closest to what it is now: an edit
    changes a matrix little, and two different ones are far apart.

    Args:
        block: Of the unedited model.
        like: The matrix in the edited one.
        place: Which it is, for messages.

    Raises:
        UnsupportedModelError: If there is none of its shape, or none that is close.
    """
    found = [view for name, part in block.named_modules() if "att" not in name for view in _views(part, like)]
    distances = [float((view - like).norm() / like.norm()) for view in found]
    if not found or (len(found) > 1 and not min(distances) < _CLOSE):
        raise UnsupportedModelError(
            f"{place} cannot be told apart among the {len(found)} matrices of shape {tuple(like.shape)} that the "
            "checkpoint has there outside attention; save the edit and apply its delta yourself"
        )
    return found[distances.index(min(distances))]


def _views(part: nn.Module, like: Float[Tensor, "d_in d_out"]) -> list[Float[Tensor, "d_in d_out"]]:
    """The weight of a linear map, transposed or not, or the equal parts that it was fused from, where they fit."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return []
    stored = weight.detach().T if isinstance(part, nn.Linear) else weight.detach()  # GPT-2's Conv1D keeps [in, out]
    parts, rest = divmod(stored.shape[1], like.shape[1])
    return list(stored.chunk(parts, dim=1)) if len(stored) == len(like) and parts and not rest else []
