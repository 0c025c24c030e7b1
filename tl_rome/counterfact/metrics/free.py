"""What a model says by itself after a prompt, against the target: contained, exactly equal, or as a judge finds.

Teacher-forced scores give the model the target's tokens and its length. Here it gets the prompt alone, writes greedily
and stops where an answer ends. Texts are compared after the normalisation of SQuAD (Rajpurkar et al. 2016): lower case,
without punctuation, articles and doubled spaces. The gap between the two is what Yang et al. (2025, "The Mirage of
Model Editing") measured.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence

from tl_rome.counterfact.metrics.prompts import mean
from tl_rome.counterfact.results import Generation
from tl_rome.errors import InputError

Judge = Callable[[str, str, str], bool | float]
"""Takes a prompt, what the model said after it, and the target; returns whether that answers, or how much, 0 to 1."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNPARTED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode names the characters of scripts that put no space between words, or none before a particle."""
_FULL_STOP = re.compile(r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])\.(?=\s|$)|[!?](?=\s|$)|[。！？]")


def natural_stop(text: str) -> str:
    """A continuation up to where an answer ends: the first end of a sentence, which is kept, or of its first line.

    Blank lines before the answer are passed over. A full stop ends nothing inside a number or word, nor after a capital
    with at most one small letter, as in "St. Louis" or "Washington, D.C.".
    """
    begun = len(text) - len(text.lstrip())
    line = text[begun:].split("\n", 1)[0]
    stop = _FULL_STOP.search(line)
    return text[:begun] + (line[: stop.end()] if stop else line)


def normalized(text: str) -> str:
    """Lower case without punctuation, English articles and doubled spaces; articles stay where nothing else is left.

    Dashes, slashes and the 's of a possessive part words; SQuAD's code joins them.
    """
    text = re.sub(r"['’]s\b", " ", text.casefold())
    parted = "".join(" " if unicodedata.category(char) == "Pd" or char == "/" else char for char in text)
    kept = "".join(char for char in parted if not unicodedata.category(char).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", kept).split()) or " ".join(kept.split())


def contains(text: str, target: str) -> bool:
    """Whether a text names the target, as whole words where its script parts words."""
    wanted, said = normalized(target), normalized(text)
    if not wanted:
        return target in text
    starts = [found.start() for found in re.finditer(f"(?={re.escape(wanted)})", said)]
    ends = [start + len(wanted) for start in starts]
    return any(_may_part(said, start) and _may_part(said, end) for start, end in zip(starts, ends, strict=True))


def _may_part(text: str, place: int) -> bool:
    """Whether a word can begin or end before the character at a place."""
    sides = text[max(place - 1, 0) : place], text[place : place + 1]
    return any(not side or unicodedata.category(side)[0] not in "LMN" or _is_unparted(side) for side in sides)


def _is_unparted(char: str) -> bool:
    return unicodedata.name(char, "").startswith(_UNPARTED)


def is_exact(text: str, target: str) -> bool:
    """Whether a text is the target and nothing else."""
    return normalized(text) == normalized(target) and (bool(normalized(target)) or text.strip() == target)


def judged(said: Sequence[Generation], target: str, judge: Judge) -> float:
    """Mean verdict of a judge, 0 to 1; NaN without texts.

    Raises:
        InputError: If a verdict is not a number from 0 to 1.
    """
    return mean([_verdict(judge(each.prompt, each.continuation, target)) for each in said])


def _verdict(found: object) -> float:
    if not isinstance(found, bool | int | float) or not math.isfinite(found) or not 0 <= found <= 1:
        raise InputError(f"the judge returned {found!r}; return True, False, or a number from 0 to 1")
    return float(found)
