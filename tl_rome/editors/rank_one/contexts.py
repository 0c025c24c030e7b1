"""Texts that stand before the prompt while k* and v* are found, so that an edit does not depend on where it stands.

The released recipe samples them from the model itself: ten of 5 tokens and ten of 10, top-k 5, from the
beginning-of-text token, whose position counts in the length; each becomes `"text. "`. The prompt itself, with nothing
before it, comes first.

A model that was never trained to begin a text from that token gives junk there, such as "-in-the-past". Paragraphs that
begin with a few common openings, those of MEMIT's code, are prose then, and six of them do better than all twenty;
docs/presets.md has the figures.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from tl_rome.editors.rank_one.presets import OPENINGS, RomeConfig
from tl_rome.generation import sample_tokens, start_token
from tl_rome.running.borrowed import borrowed
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode

_QUOTES = tuple("\"'“‘«「")
_PARAGRAPH = "\n\n"
_PARAGRAPHS = 7  # with the empty one
_log = logging.getLogger(__name__)


def choose_contexts(
    model: HookedModel, config: RomeConfig, *, generator: torch.Generator
) -> tuple[tuple[str, ...], str]:
    """Prefixes by the preset's recipe, or seven from `OPENINGS` where that gives junk; and how made, in words.

    Args:
        model: Left as found.
        config: The recipe.
        generator: Source of the draws.
    """
    with borrowed(model):
        found = _sampled(model, config, generator)
        if config.context_openings or not are_junk(found):
            return found, config.contexts_choice
        _log.info(
            "texts sampled from the start token are junk, such as %r; sampling from openings instead "
            "(contexts='recipe' keeps to the preset)",
            next(text for text in found if text and not _is_prose(text)),
        )
        better = replace(config, context_openings=OPENINGS)
        paragraphs = _sampled(model, better, generator)
    return spread_contexts(paragraphs, f"{better.contexts_choice}; the start token gives junk", _PARAGRAPHS)


def contexts_for(
    model: HookedModel,
    config: RomeConfig,
    given: Sequence[str] | Literal["recipe"] | None,
    *,
    generator: torch.Generator,
) -> tuple[tuple[str, ...], str]:
    """The contexts that are given, those of the recipe, or for None what `choose_contexts` finds; and how, in words.

    Args:
        model: Left as found.
        config: The recipe.
        given: Prefixes, `""` first.
        generator: Source of the draws, if there are any.
    """
    if given is None:
        return choose_contexts(model, config, generator=generator)
    if given == "recipe":
        return sample_contexts(model, config, generator=generator), config.contexts_choice
    return tuple(given), "given"


def spread_contexts(contexts: Sequence[str], choice: str, most: int) -> tuple[tuple[str, ...], str]:
    """At most `most` contexts: the empty one and others at equal distances, so that all lengths stay; and in words.

    Args:
        contexts: The empty one first.
        choice: How they were made.
        most: At least 1.
    """
    if len(contexts) <= most:
        return tuple(contexts), choice
    empty, *others = contexts
    chosen = (others[i * len(others) // (most - 1)] for i in range(most - 1))
    return (empty, *chosen), f"{most} of {len(contexts)}, {choice}"


def are_junk(contexts: Sequence[str]) -> bool:
    """Whether most of the sampled prefixes are not prose.

    Prose begins with a letter, a digit or a quotation mark, is letters and spaces to three quarters, and has a word.
    """
    sampled = [context for context in contexts if context]
    return sum(map(_is_prose, sampled)) < len(sampled) / 2


def _is_prose(context: str) -> bool:
    text = context.removesuffix(". ").lstrip()
    plain = sum(character.isalpha() or character.isspace() for character in text)
    has_word = any(len(word) > 1 and word.isalpha() for word in text.split())
    return has_word and plain >= 0.75 * len(text) and (text[0].isalnum() or text[0] in _QUOTES)


def sample_contexts(model: HookedModel, config: RomeConfig, *, generator: torch.Generator) -> tuple[str, ...]:
    """Prefixes to put before a prompt, the empty one first.

    Args:
        model: Left as found.
        config: Says how many, how long, from what beginning, and among how many tokens to sample.
        generator: Source of the draws.

    Returns:
        `""` followed by strings that end in `". "`.
    """
    with borrowed(model):
        return _sampled(model, config, generator)


def _sampled(model: HookedModel, config: RomeConfig, generator: torch.Generator) -> tuple[str, ...]:
    prefixes = [""]
    for length, count in config.context_lengths:
        if config.context_openings:
            texts = _from_openings(model, config, length, count, generator)
        else:
            start = torch.full((count, 1), start_token(model))
            sampled = sample_tokens(model, start, length - 1, generator=generator, top_k=config.context_top_k)
            texts = model.tokenizer.batch_decode(sampled[:, 1:], skip_special_tokens=True)
        prefixes += [f"{text}. " for text in texts]
    return tuple(prefixes)


def _from_openings(
    model: HookedModel, config: RomeConfig, length: int, count: int, generator: torch.Generator
) -> list[str]:
    """Texts of `length` tokens that begin with the openings in turn, each sampled as the start of a paragraph.

    Without the line break, a model without BOS takes the opening's first token for an attention sink and not a word.
    """
    texts = []
    for index in range(count):
        opening = config.context_openings[index % len(config.context_openings)]
        start = encode(model, _PARAGRAPH + opening)
        more = max(0, length - len(model.tokenizer.encode(opening, add_special_tokens=False)))
        sampled = sample_tokens(model, start[None], more, generator=generator, top_k=config.context_top_k)
        texts.append(model.tokenizer.decode(sampled[0], skip_special_tokens=True).strip())
    return texts
