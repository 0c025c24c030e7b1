"""What two models, or one model with and without a change, say after the same prompts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tl_rome.audit.likely import next_probs
from tl_rome.errors import InputError
from tl_rome.generation import continue_texts
from tl_rome.sites import HookedModel
from tl_rome.tokens import token_labels


@dataclass(frozen=True)
class Said:
    """What one model says after a prompt."""

    tokens: tuple[tuple[str, float], ...]
    """The likeliest next tokens with their probabilities."""
    text: str
    """Greedy continuation."""


@dataclass(frozen=True)
class Answers:
    """A prompt in two models."""

    prompt: str
    """What was continued."""
    before: Said
    """By the base, or with what is suspicious taken out."""
    after: Said
    """By the other."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def say(model: HookedModel, prompts: Sequence[str], top_k: int, new_tokens: int) -> list[Said]:
    """What a model says after each prompt.

    Raises:
        InputError: If a prompt cannot be continued, or the vocabulary has no `top_k` tokens.
    """
    if not prompts:
        return []
    if top_k > model.cfg.d_vocab:
        raise InputError(f"top_k is {top_k}; the vocabulary has {model.cfg.d_vocab} tokens")
    top = next_probs(model, prompts).topk(top_k)
    texts = continue_texts(model, prompts, new_tokens, generator=torch.Generator(), top_k=1)  # greedy: nothing is drawn
    return [
        Said(tuple(zip(token_labels(model, tokens), probs.tolist(), strict=True)), text)
        for tokens, probs, text in zip(top.indices, top.values, texts, strict=True)
    ]


def side_by_side(prompts: Sequence[str], before: Sequence[Said], after: Sequence[Said]) -> tuple[Answers, ...]:
    """Each prompt with what both say."""
    return tuple(Answers(*row) for row in zip(prompts, before, after, strict=True))
