"""Reference arrays of KN, KE and MEND, and the tiny GPT-2 that they were computed with, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.families import save_tokenizer

MATRICES = {"c_fc": "W_in", "c_proj": "W_out"}
"""GPT-2's names of matrices, and those of TransformerLens."""


def golden_arrays(shared_data: Path, name: str) -> dict[str, Tensor]:
    """All arrays of one file."""
    with np.load(shared_data / "golden" / "baselines" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def golden_gpt2(arrays: dict[str, Tensor], kind: str, folder: Path) -> Any:
    """The model whose weights are the arrays `W.*`; a tokenizer is saved in the folder, and means nothing to it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tl_rome.models.conversion import convert
    from tl_rome.models.loading import quiet

    weights = {name.removeprefix("W."): value for name, value in arrays.items() if name.startswith("W.")}
    vocabulary, size = weights["wte.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    positions = len(weights["wpe.weight"])
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=size, n_layer=layers, n_head=2, attn_implementation="eager"
    )
    hf = GPT2LMHeadModel(config).double().eval()
    missing, unexpected = hf.transformer.load_state_dict(weights, strict=False)
    assert not [*unexpected, *(name for name in missing if not name.endswith("attn.bias"))]
    with quiet(progress=False):
        model = convert(hf, save_tokenizer(folder, adds_bos=False), "golden", kind)
    model.cfg.default_prepend_bos = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
