"""Windows of text of a given number of tokens, which read again as the same tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of a text."""

    text: str
    """As it is written; `encode` makes `tokens` of it."""
    tokens: Int[Tensor, " pos"]
    """BOS included where the model's policy prepends it."""
    source: int
    """Which of the texts it is from."""


def draw_windows(
    model: HookedModel, texts: Sequence[str], sizes: tuple[int, int], *, generator: torch.Generator
) -> Iterator[Window | None]:
    """Windows of random length at random places, one of every text that is long enough, then another one of each.

    Args:
        model: Only its tokenizer is used.
        texts: Any; what is beyond the context is not looked at.
        sizes: Fewest and most tokens of a window, BOS not counted.
        generator: Source of the draws.

    Yields:
        A window, or None in place of one that is not text: its tokens, written out, would be read as others, as where
        it begins inside a character. It ends when all texts have been gone through without a window that is new.

    Raises:
        InputError: If the sizes are not fewest and most.
    """
    fewest, most = sizes
    if not 0 < fewest <= most:
        raise InputError(f"sizes of windows are {sizes}; give the fewest and the most tokens, as (24, 32)")
    lead = int(bool(model.cfg.default_prepend_bos))
    encoded = {index: encode(model, text, truncate=True) for index, text in enumerate(texts) if text.strip()}
    long_enough = [index for index, tokens in encoded.items() if len(tokens) >= lead + fewest]
    seen: set[tuple[int, int, int]] = set()
    before = -1
    while len(seen) > before:
        before = len(seen)
        for place in torch.randperm(len(long_enough), generator=generator).tolist():
            source = long_enough[place]
            tokens = encoded[source]
            size = _uniform(fewest, min(most, len(tokens) - lead), generator)
            start = _uniform(lead, len(tokens) - size, generator)
            if (source, start, size) not in seen:
                seen.add((source, start, size))
                piece = torch.cat([tokens[:lead], tokens[start : start + size]])
                text = written(model, piece)
                yield None if text is None else Window(text, piece, source)


def written(model: HookedModel, tokens: Int[Tensor, " pos"]) -> str | None:
    """The text that `encode` makes these tokens of, None if there is none."""
    lead = int(bool(model.cfg.default_prepend_bos))
    text = decoded(model, tokens[lead:])
    return text if text.strip() and torch.equal(encode(model, text), tokens) else None


def decoded(model: HookedModel, tokens: Int[Tensor, " pos"]) -> str:
    """What tokens say, nothing left out."""
    return model.tokenizer.decode(tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _uniform(least: int, most: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))
