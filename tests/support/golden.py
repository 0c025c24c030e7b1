"""Reference arrays of KN, KE and MEND, and the tiny GPT-2 that they were computed with, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MATRICES = {"c_fc": "W_in", "c_proj": "W_out"}
"""GPT-2's names of matrices, and those of TransformerLens."""


def golden_arrays(shared_data: Path, name: str) -> dict[str, Tensor]:
    """All arrays of one file."""
    with np.load(shared_data / "golden" / "baselines" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def golden_gpt2(arrays: dict[str, Tensor], kind: str, folder: Path) -> Any:
    """The model whose weights are the arrays `W.*`; its texts are token ids written as words, see `as_text`."""
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
        model = convert(hf, _save_words(vocabulary, folder), "golden", kind)
    model.cfg.default_prepend_bos = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def as_text(ids: Tensor) -> str:
    """The text of token ids: "w7 w31" is [7, 31]."""
    return " ".join(f"w{token}" for token in ids.reshape(-1).tolist())


def _save_words(vocabulary: int, folder: Path) -> Any:
    """A tokenizer whose token n is the word "wn", saved and returned."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0", unk_token="w0")
    tokenizer.save_pretrained(folder)
    return tokenizer
