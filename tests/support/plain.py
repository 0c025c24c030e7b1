"""The truth from plain transformers: no TransformerLens, no hook points, nothing of this package."""

from typing import Any

import torch
from torch import Tensor, nn


def load(folder: Any, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def logprob(hf: Any, prompt: list[int], target: list[int]) -> float:
    """Of a target's tokens after a prompt's."""
    logprobs = hf(torch.tensor([prompt + target])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(target))


@torch.no_grad()
def greedy(hf: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """The continuation, by whole forward passes without a cache."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(hf(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def blocks(hf: Any) -> nn.ModuleList:
    """The list of transformer blocks."""
    n_layers = hf.config.num_hidden_layers
    (found,) = [part for part in hf.modules() if isinstance(part, nn.ModuleList) and len(part) == n_layers]
    return found


def embeddings(hf: Any) -> nn.Module:
    """What makes the embeddings that a trace corrupts; BLOOM normalises them first."""
    named = [part for name, part in hf.named_modules() if name.endswith("word_embeddings_layernorm")]
    return named[0] if named else hf.get_input_embeddings()


def embedded(hf: Any, tokens: Tensor) -> Tensor:
    """The embeddings of some tokens."""
    words = hf.get_input_embeddings()(tokens)
    return words if embeddings(hf) is hf.get_input_embeddings() else embeddings(hf)(words)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def restored(hf: Any, tokens: list[int], subject: slice, noise: Tensor, layer: int, position: int) -> Tensor:
    """Probabilities of the next token, with the subject's embeddings corrupted and one hidden state restored.

    Args:
        hf: A plain model.
        tokens: The prompt.
        subject: Positions of the subject.
        noise: [sample, span, d_model], added to the subject's embeddings.
        layer: Block whose output is restored.
        position: Where.

    Returns:
        [sample, d_vocab].
    """
    kept: list[Tensor] = []
    block = blocks(hf)[layer]
    handle = block.register_forward_hook(lambda module, args, output: kept.append(_first(output).clone()))
    hf(torch.tensor([tokens]))
    handle.remove()

    def corrupt(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, subject] += noise
        return output

    def restore(module: nn.Module, args: Any, output: Any) -> Any:
        stream = _first(output).clone()
        stream[:, position] = kept[0][0, position]
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handles = [embeddings(hf).register_forward_hook(corrupt), block.register_forward_hook(restore)]
    try:
        return hf(torch.tensor([tokens] * len(noise))).logits[:, -1].float().softmax(-1)
    finally:
        for handle in handles:
            handle.remove()
