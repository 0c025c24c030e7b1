"""Records in the layout of `zsre_mend_eval.json`.

The new object is the *true* answer, the first of `answers`: such an edit corrects the model, it does not make it lie.
Fields that ROME's successors do not read (`pred`, `alt`, `cond`) are known and left out; any other is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_rome.counterfact.dataset.load import read_rows
from tl_rome.errors import InputError, RecordError
from tl_rome.facts import EditRequest
from tl_rome.storage.text import brief, ending

_TEXTS = ("src", "subject", "rephrase", "loc", "loc_ans")
_UNUSED = ("pred", "alt", "cond")


@dataclass(frozen=True)
class ZsreRecord:
    """A question about a subject, its rephrasing, and an unrelated question.

    Raises:
        RecordError: If a text is blank, or the question does not name the subject.
    """

    case_id: int
    """Place of the record in its file, counted from 0."""
    question: str
    """`src`, to which the answer is written."""
    subject: str
    """Name of the entity."""
    answer: str
    """The first of `answers`."""
    rephrase: str
    """The question in other words."""
    unrelated: str
    """`loc`, as "nq question: who ...", without a question mark."""
    unrelated_answer: str
    """`loc_ans`, the true answer, whatever the model says."""

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if name != "case_id" and not text.strip():
                raise RecordError(f"record {self.case_id}: {name} is {brief(text)}; give a text")
        try:
            _ = self.request
        except InputError as error:
            raise RecordError(f"record {self.case_id}: src: {error}") from error

    @property
    def request(self) -> EditRequest:
        """What an editor is asked to do, with the slot at the first mention of the subject; released code has all."""
        return EditRequest(self.question.replace(self.subject, "{}", 1), self.subject, self.answer, None, " ")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], case_id: int) -> "ZsreRecord":
        """Read a record's JSON form.

        Raises:
            RecordError: If a field is missing, of another type or unknown.
        """
        if not isinstance(data, Mapping):
            raise RecordError(f"record {case_id} is {brief(data)}; an object is needed")
        if unknown := sorted(map(str, data.keys() - {*_TEXTS, "answers", *_UNUSED})):
            raise RecordError(f"record {case_id}: unknown fields {', '.join(unknown)}; take them out")
        if missing := [name for name in (*_TEXTS, "answers") if name not in data]:
            raise RecordError(f"record {case_id}: {', '.join(missing)} is missing")
        if wrong := [name for name in _TEXTS if not isinstance(data[name], str)]:
            raise RecordError(f"record {case_id}: {wrong[0]} is {brief(data[wrong[0]])}; a text is needed")
        answers = data["answers"]
        if not isinstance(answers, list) or not answers or not isinstance(answers[0], str):
            raise RecordError(f"record {case_id}: answers is {brief(answers)}; a list with the answer first is needed")
        src, subject, rephrase, loc, loc_ans = (data[name] for name in _TEXTS)
        if not subject or subject not in src:
            raise RecordError(f"record {case_id}: src {brief(src)} does not contain the subject {brief(subject)}")
        return cls(case_id, src, subject, answers[0], rephrase, loc, loc_ans)


def is_zsre(path: str | Path) -> bool:
    """Whether a `.json` or `.jsonl` file that is there begins with a record of this layout.

    Raises:
        RecordError: If it is empty, or not what its name says.
        StorageError: If it cannot be read.
    """
    if ending(path) not in (".json", ".jsonl") or not Path(path).is_file():
        return False
    first = next(iter(read_rows(path)), None)
    return isinstance(first, Mapping) and first.keys() >= {*_TEXTS, "answers"}


def load_zsre(path: str | Path) -> list[ZsreRecord]:
    """Read a `.json` or `.jsonl` file of MEND's layout, in its order.

    Raises:
        RecordError: If there is no record or a malformed one; the message names record and field.
        StorageError: If the file cannot be read.
    """
    records = [ZsreRecord.from_dict(row, index) for index, row in enumerate(read_rows(path))]
    if not records:
        raise RecordError(f"{path} holds no records")
    return records
