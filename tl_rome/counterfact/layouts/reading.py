"""What the readers of other layouts share: a field that is not known is an error, and what is left out is told."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tl_rome.counterfact.dataset.load import read_rows
from tl_rome.counterfact.groups import PromptAnswer
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.errors import InputError, RecordError
from tl_rome.storage.layouts import name_layout
from tl_rome.storage.parts import read_as

_log = logging.getLogger(__name__)
_OTHERWISE = "load_counterfact, load_zsre, load_knowedit, load_mquake and load_rippleedits read a layout each"
T = TypeVar("T")
Notes = Counter[str]
"""How often something was left out, by what it was."""


def collect(
    path: str | Path,
    layout: str,
    kind: type[T],
    make: Callable[[T, int, Notes], CounterFactRecord | str],
    *,
    unread: Iterable[str] = (),
) -> list[CounterFactRecord]:
    """Read a file's records, and tell what was left out.

    Args:
        path: `.json` or `.jsonl`, either perhaps gzipped.
        layout: Its name, as `LAYOUTS` has it.
        kind: Dataclass that has the fields of a record; others are refused.
        make: Gives the record of an object, its place in the file and the notes; or the reason why there is none.
        unread: Fields that are known, at any depth, and not looked at.

    Raises:
        RecordError: If there is no record, or a malformed one.
        StorageError: If the file cannot be read.
    """
    records, left_out, notes, known = list[CounterFactRecord](), Counter[str](), Notes(), frozenset(unread)
    for number, row in enumerate(read_rows(path)):
        try:
            found = make(read_as(kind, _without(row, known), "it"), number, notes)
        except (ValueError, InputError) as error:
            other = name_layout(row, layout, _OTHERWISE)
            raise RecordError(f"{path}: number {number} {other or f'is no record of {layout}: {error}'}") from error
        if isinstance(found, str):
            left_out[found] += 1
        else:
            records.append(found)
    told = [f"{count} records: {why}" for why, count in left_out.items()]
    if not records:
        raise RecordError(f"{path} gives no records{''.join(f'; {each}' for each in told)}")
    for each in (*told, *(f"{count} {what}" for what, count in notes.items() if count)):
        _log.warning("left out of %s: %s", path, each)
    return records


def _without(data: Any, unread: frozenset[str]) -> Any:
    if isinstance(data, Mapping):
        return {name: _without(part, unread) for name, part in data.items() if name not in unread}
    return [_without(part, unread) for part in data] if isinstance(data, list) else data


def answered(prompt: str, names: Iterable[str], notes: Notes) -> list[PromptAnswer]:
    """A prompt with the names that are right, each once and without white space around it; none if there is no name."""
    kept = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not kept or not prompt.strip():
        notes["prompts without an answer, or blank"] += 1
        return []
    return [PromptAnswer(prompt, kept)]


def slotted(prompt: str, subject: str) -> str | None:
    """A template: the prompt with a slot at the first mention of the subject; None if it has none, or braces."""
    return prompt.replace(subject, "{}", 1) if subject and subject in prompt and "{}" not in prompt else None
