"""An edited model as a plain Hugging Face folder, which any library loads.

Neither TransformerLens class can be saved as the checkpoint it came from: a bridge has rewired it, and for
HookedTransformer there is no way back. So the checkpoint is read again and gets the matrices of the model's MLPs, and
nothing but an edit of that very checkpoint is written (`stored`).
"""

from pathlib import Path

import torch

from tl_rome.editors.export.stored import check_same_logits, stored_matrices
from tl_rome.models.hugging_face import load_hugging_face
from tl_rome.running.matrices import mlp_matrices, w_out
from tl_rome.sites import HookedModel
from tl_rome.storage.writing import whole_folder


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
    places = [place for layer in range(model.cfg.n_layers) for place in mlp_matrices(model, layer)]
    for place, stored in stored_matrices(plain, model, places).items():
        stored.weight.copy_(place.weight(model))
    check_same_logits(plain, model, source)
    with whole_folder(Path(folder)) as written:
        plain.save_pretrained(written)
        tokenizer.save_pretrained(written)
    return Path(folder)
