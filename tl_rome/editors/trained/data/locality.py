"""Text on which an edited model should say what the unedited one says, to measure and to train locality.

The sources take any text of the kind that the model was trained on; here windows of its longer lines.
"""

from collections.abc import Iterable

import torch

from tl_rome.arguments import Count, Whole
from tl_rome.editors.trained.data.windows import draw_windows
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel


def locality_texts(
    model: HookedModel,
    texts: Iterable[str],
    count: Count,
    *,
    generator: torch.Generator,
    sizes: tuple[int, int] = (24, 32),
    more_words_than: Whole = 50,
) -> list[str]:
    """Windows of texts, each text used once before any is used again.

    Args:
        model: Only its tokenizer is used.
        texts: Such as lines of WikiText.
        count: How many windows.
        generator: Source of the draws.
        sizes: Fewest and most tokens of a window, BOS not counted.
        more_words_than: Texts of no more words are left out, as headings are.

    Raises:
        InputError: If the texts do not have so many windows.
    """
    long_ones = [text for text in texts if len(text.split()) > more_words_than]
    found: list[str] = []
    for window in draw_windows(model, long_ones, sizes, generator=generator):
        if window is not None:
            found.append(window.text)
        if len(found) == count:
            return found
    raise InputError(
        f"{len(long_ones)} texts of more than {more_words_than} words have {len(found)} windows of {sizes[0]} to "
        f"{sizes[1]} tokens, {count} are asked for; give more text"
    )
