"""A model whose blocks take no time: many, narrow ones, with random weights and a small vocabulary.

Its cost is Python and the launching of kernels, which is what bounds tracing and editing on a GPU.
"""

from typing import Any

import torch

from tl_rome.counterfact import CounterFactRecord, load_counterfact
from tl_rome.models.conversion import convert

LAYERS, D_MODEL, N_CTX, VOCAB = 48, 64, 256, 600


def deep_thin(model_class: Any, layers: int = LAYERS) -> Any:
    """A GPT-2 with that many blocks, the same one at every call."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    shape: dict[str, Any] = {"n_embd": D_MODEL, "n_layer": layers, "n_head": 4, "n_positions": N_CTX}
    ends: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    return convert(GPT2LMHeadModel(GPT2Config(**shape, **ends)).eval(), tokenizer, "deep-thin", model_class)


def records(count: int) -> list[CounterFactRecord]:
    """The first of the shipped ones."""
    return load_counterfact("sample")[:count]


def _tokenizer() -> Any:
    """Bytes and some merges of the shipped records."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([record.request.fact.prompt for record in records(63)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
