"""An edited model as a plain Hugging Face folder, which any library loads.

Neither TransformerLens class can be saved as the checkpoint it came from: a bridge has rewired it, and for
HookedTransformer there is no way back. So the checkpoint is read once more and gets the model's W_out; every W_in is
compared bit for bit, so that nothing but an edit of that very checkpoint is written.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import ModelMismatchError, StorageError, UnsupportedModelError
from tl_rome.models.loading import load_hugging_face
from tl_rome.sites import HookedModel, w_in, w_out

_MLP = {
    "gpt2": ("transformer.h.{}.mlp", "c_fc", "c_proj"),
    "gptj": ("transformer.h.{}.mlp", "fc_in", "fc_out"),
    "gpt_neox": ("gpt_neox.layers.{}.mlp", "dense_h_to_4h", "dense_4h_to_h"),
    **dict.fromkeys(("llama", "qwen2", "mistral", "gemma2"), ("model.layers.{}.mlp", "up_proj", "down_proj")),
}
"""By `model_type`: where transformers keeps an MLP, and the names of W_in and W_out in it."""
_STORED_AS_TRANSFORMER_LENS_DOES = frozenset({"gpt2"})
"""Families whose matrices are [in, out]; all others keep [out, in]."""


def export_model(model: HookedModel, source: str, folder: str | Path) -> Path:
    """Write a model with the edits that are applied to it in Hugging Face layout.

    Args:
        model: Left as found; from the same source, unprocessed.
        source: Name or folder that the model was loaded from, as `load_model` takes it.
        folder: Where to write weights, config and tokenizer.

    Returns:
        The folder; `load_model` and transformers load it.

    Raises:
        UnsupportedModelError: If the family is not one that this knows the weights of.
        ModelMismatchError: If the model is not the source with edits of W_out.
        ModelUnavailableError: If the source cannot be read.
        StorageError: If the folder cannot be written.
    """
    plain, tokenizer = load_hugging_face(source, w_out(model, 0).dtype, None, False)
    with torch.no_grad():
        for layer in range(model.cfg.n_layers):
            into, out = _matrices(plain, layer)
            if not torch.equal(into, w_in(model, layer).cpu()) or out.shape != w_out(model, layer).shape:
                raise ModelMismatchError(
                    f"W_in of layer {layer} is not that of {source!r}; name the checkpoint that the model was loaded "
                    "from, in the same dtype and without weight processing"
                )
            out.copy_(w_out(model, layer))
    try:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error}") from error
    return Path(folder)


def _matrices(plain: Any, layer: int) -> tuple[Float[Tensor, "d_model d_mlp"], Float[Tensor, "d_mlp d_model"]]:
    """Views of W_in and W_out of a Hugging Face model, oriented as TransformerLens has them."""
    family = plain.config.model_type
    if family not in _MLP:
        raise UnsupportedModelError(f"cannot export {family!r} models; the families that can be are {sorted(_MLP)}")
    path, *names = _MLP[family]
    mlp = plain.get_submodule(path.format(layer))
    into, out = (mlp.get_submodule(name).weight.detach() for name in names)
    return (into, out) if family in _STORED_AS_TRANSFORMER_LENS_DOES else (into.T, out.T)
