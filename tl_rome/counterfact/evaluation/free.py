"""What a model says by itself: greedy continuations of rewrite and paraphrase prompts, all rows in one batch."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.counterfact.evaluation.continuation import continuation
from tl_rome.counterfact.metrics.free import natural_stop
from tl_rome.counterfact.records import CounterFactRecord, PromptGroup
from tl_rome.counterfact.results import Generation
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.generation import generate_to_length
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode

GROUPS: tuple[PromptGroup, ...] = ("rewrite", "paraphrase")
"""Prompts that are answered."""
Answers = dict[PromptGroup, tuple[Generation, ...]]
"""What was said after each prompt of a group."""


def answer_freely(
    model: HookedModel,
    records: Sequence[CounterFactRecord],
    new_tokens: int,
    *,
    edits: VirtualEdits | None = None,
) -> list[Answers]:
    """Continue the prompts of some records greedily, each up to its natural stop.

    Args:
        model: Left as found.
        records: Each is asked in the model with its own edit.
        new_tokens: At most so many are written after each prompt.
        edits: One per record; None is the model as it is.

    Raises:
        InputError: If a prompt with its answer could exceed the context.
        NumericsError: If a logit is not finite.
    """
    asked: list[tuple[int, PromptGroup, str]] = [
        (i, name, text) for i, each in enumerate(records) for name in GROUPS for text in each.prompts(name)
    ]
    starts = [encode(model, text) for _, _, text in asked]
    with nullcontext() if edits is None else edits.on([owner for owner, _, _ in asked]):
        filled = generate_to_length(
            model, starts, max(map(len, starts)) + new_tokens, generator=torch.Generator(), top_k=1
        )
    said: list[dict[PromptGroup, list[Generation]]] = [{name: [] for name in GROUPS} for _ in records]
    for (owner, name, text), start, tokens in zip(asked, starts, filled, strict=True):
        written = natural_stop(_decoded(model, tokens[: len(start) + new_tokens], len(start)))
        said[owner][name].append(Generation(text, written))
    return [{name: tuple(each) for name, each in groups.items()} for groups in said]


def _decoded(model: HookedModel, tokens: Int[Tensor, " pos"], start: int) -> str:
    """Text after the prompt, up to the end-of-text token; decoded with the prompt, see `continuation`."""
    ends = (tokens[start:] == model.tokenizer.eos_token_id).nonzero()[:, 0].tolist()
    return continuation(model, tokens[: start + ends[0]] if ends else tokens, start)
