"""The tiny GPT-2 models that golden data of the baselines was computed with, as a folder in Hugging Face layout.

Their texts are token ids written as words: "w7 w31" is [7, 31].
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_golden_gpt2(arrays: Mapping[str, Any], folder: Path, n_head: int = 2) -> Path:
    """Save the model of an archive's `W.*` arrays, in float64, with its tokenizer; returns the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    weights = {f"transformer.{name[2:]}": torch.as_tensor(arrays[name]) for name in arrays if name.startswith("W.")}
    (vocab, width), (positions, _) = arrays["W.wte.weight"].shape, arrays["W.wpe.weight"].shape
    layers = sum(name.endswith("ln_1.weight") for name in weights)
    shape = {"vocab_size": vocab, "n_positions": positions, "n_embd": width, "n_layer": layers, "n_head": n_head}
    config = GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    model.tie_weights()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(vocab)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", unk_token="w0").save_pretrained(folder)
    return folder


def as_text(ids: Iterable[int] | np.ndarray) -> str:
    """The text of token ids."""
    return " ".join(f"w{int(token)}" for token in np.atleast_1d(np.asarray(ids)))
