"""An edited model as a plain Hugging Face folder, which any library loads.

Neither TransformerLens class can be saved as the checkpoint it came from: a bridge has rewired it, and for
HookedTransformer there is no way back. So the checkpoint is read again and gets the model's W_out. No model family
is named here: W_out is found by its shape, every W_in is compared bit for bit, and before anything is written the plain
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
from tl_rome.sites import HookedModel, w_in, w_out
from tl_rome.storage.writing import whole_folder

_PROBE = 16
"""Tokens that the exported model is compared on."""
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
        UnsupportedModelError: If its MLPs' output matrices cannot be told apart from others by their shape.
        ModelMismatchError: If the model is not the source with edits of W_out.
        ModelUnavailableError: If the source cannot be read.
        StorageError: If the folder cannot be written.
    """
    plain, tokenizer = load_hugging_face(source, w_out(model, 0).dtype, None, False)
    for layer, block in enumerate(_blocks(plain, model.cfg.n_layers)):
        if not any(_holds(weight, w_in(model, layer).cpu()) for weight in block.parameters()):
            raise _mismatch(f"W_in of layer {layer} is not that of {source!r}")
        _output_matrix(block, w_out(model, layer), layer).copy_(w_out(model, layer))
    tokens = (torch.arange(1, _PROBE + 1) * 7919 % model.cfg.d_vocab)[None]
    with borrowed(model):
        expected = run(model, tokens.to(device_of(model))).cpu().double()
    error = float((plain(tokens).logits.double() - expected).norm() / expected.norm())
    if not error <= _TOLERANCE.get(w_out(model, 0).dtype, 0.1):
        raise _mismatch(f"with the model's W_out, {source!r} gives other logits (relative error {error:.1e})")
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


def _holds(weight: Float[Tensor, "..."], wanted: Float[Tensor, "d_model d_mlp"]) -> bool:
    """Whether a weight is a matrix, transposed or not, or has it among the equal parts that it was fused from."""
    if weight.ndim != 2:
        return False
    for matrix in (weight, weight.T):
        parts, rest = divmod(matrix.shape[1], wanted.shape[1])
        if len(matrix) == len(wanted) and parts and not rest:
            return any(torch.equal(part, wanted) for part in matrix.chunk(parts, dim=1))
    return False


def _output_matrix(
    block: nn.Module, like: Float[Tensor, "d_mlp d_model"], layer: int
) -> Float[Tensor, "d_mlp d_model"]:
    """A view of W_out in a block of transformers, oriented as TransformerLens has it.

    Raises:
        UnsupportedModelError: If no matrix outside attention has its shape, or several have.
    """
    found = []
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or "att" in name:
            continue
        stored = weight.T if isinstance(module, nn.Linear) else weight  # GPT-2's Conv1D keeps [in, out]
        found += [stored.detach()] if stored.shape == like.shape else []
    if len(found) != 1:
        raise UnsupportedModelError(
            f"layer {layer} has {len(found)} matrices of shape {tuple(like.shape)} outside attention, not one, so that "
            "the MLP's output matrix cannot be identified; save the edit and apply its delta yourself"
        )
    return found[0]
