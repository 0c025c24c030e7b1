"""KnowEdit (Zhang et al. 2024): records of its WikiData_recent, WikiData_counterfact and ZsRE files.

Every list of `portability` and `locality` becomes a group of its own name; a `rephrase` becomes the group "rephrase".
Published locality is the share of tokens that the edit left as they were; here a group's figures say whether the answer
is right, so compare them with the unedited model's. `cond` is not read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tl_rome.counterfact.layouts.reading import Notes, answered, collect, slotted
from tl_rome.counterfact.records import CounterFactRecord, RequestedRewrite
from tl_rome.fact_files import Target

_Names = str | tuple[str, ...] | tuple[tuple[str, ...], ...]
"""One name; names of which each is right; or several answers with their aliases."""


@dataclass(frozen=True)
class _Asked:
    prompt: str
    ground_truth: _Names


@dataclass(frozen=True)
class _Row:
    subject: str
    prompt: str
    target_new: str
    ground_truth: _Names | None = None
    rephrase: str | tuple[str, ...] = ()
    rephrase_prompt: str | tuple[str, ...] = ()
    portability: Mapping[str, tuple[_Asked, ...] | None] = field(default_factory=dict)
    locality: Mapping[str, tuple[_Asked, ...] | None] = field(default_factory=dict)


def load_knowedit(path: str | Path) -> list[CounterFactRecord]:
    """Read a file of KnowEdit; case_id is the place in it.

    Records are left out, with a warning that counts them, whose prompt does not name the subject, or which have no
    object to compare with: no `ground_truth`, as in WikiData_recent, or the same as `target_new`.

    Raises:
        RecordError: If no record is left, or one is malformed or has a field that is not known.
        StorageError: If the file cannot be read.
    """
    return collect(path, "KnowEdit", _Row, _record, unread=("cond",))


def _record(row: _Row, number: int, notes: Notes) -> CounterFactRecord | str:
    template = slotted(row.prompt, row.subject)
    true = next((name.strip() for name in _flat(row.ground_truth or ()) if name.strip()), None)
    if template is None:
        return "the prompt does not name the subject"
    if true is None or true == row.target_new.strip():
        return "there is no ground_truth to compare target_new with"
    groups = {
        name: tuple(each for one in asked or () for each in answered(one.prompt, _flat(one.ground_truth), notes))
        for part in (row.portability, row.locality)
        for name, asked in part.items()
    }
    rephrased = [*_flat(row.rephrase), *_flat(row.rephrase_prompt)]
    groups["rephrase"] = tuple(each for prompt in rephrased for each in answered(prompt, (row.target_new,), notes))
    rewrite = RequestedRewrite(template, "", Target(row.target_new.strip()), Target(true), row.subject)
    return CounterFactRecord(number, rewrite, (), (), groups={name: group for name, group in groups.items() if group})


def _flat(names: _Names) -> Iterator[str]:
    """All names, whatever list they are in."""
    if isinstance(names, str):
        yield names
    else:
        for each in names:
            yield from _flat(each)
