"""MQuAKE (Zhong et al. 2023): multi-hop questions whose answer follows from the edited fact.

Groups: "question", the fact itself; "single hops", the new chain as statements to complete; "multi-hop", the questions,
any of which counts in the paper, each alone here. The paper puts examples before its questions; here there are none.
Answers and hops of before the edit, and the WikiData triples, are not read.
"""

from dataclasses import dataclass
from pathlib import Path

from tl_rome.counterfact.layouts.reading import Notes, answered, collect
from tl_rome.counterfact.records import CounterFactRecord, RequestedRewrite
from tl_rome.fact_files import Target

_UNREAD = ("orig", "answer_extended", "single_hops")


@dataclass(frozen=True)
class _Rewrite:
    prompt: str
    relation_id: str
    target_new: Target
    target_true: Target
    subject: str
    question: str


@dataclass(frozen=True)
class _Hop:
    question: str
    cloze: str
    answer: str
    answer_alias: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    case_id: int
    requested_rewrite: tuple[_Rewrite, ...]
    questions: tuple[str, ...]
    answer: str
    new_answer: str
    new_single_hops: tuple[_Hop, ...]
    answer_alias: tuple[str, ...] = ()
    new_answer_alias: tuple[str, ...] = ()


def load_mquake(path: str | Path) -> list[CounterFactRecord]:
    """Read a file of MQuAKE-CF or MQuAKE-T.

    Records that rewrite several facts are left out, with a warning that counts them: here a record rewrites one.

    Raises:
        RecordError: If no record is left, or one is malformed or has a field that is not known.
        StorageError: If the file cannot be read.
    """
    return collect(path, "MQuAKE", _Row, _record, unread=_UNREAD)


def _record(row: _Row, number: int, notes: Notes) -> CounterFactRecord | str:
    if len(row.requested_rewrite) != 1:
        return "they do not rewrite one fact"
    (asked,) = row.requested_rewrite
    hops = [each for hop in row.new_single_hops for each in answered(hop.cloze, (hop.answer, *hop.answer_alias), notes)]
    right = (row.new_answer, *row.new_answer_alias)
    groups = {
        "question": answered(asked.question, (asked.target_new.str,), notes),
        "single hops": hops,
        "multi-hop": [each for question in row.questions for each in answered(question, right, notes)],
    }
    rewrite = RequestedRewrite(asked.prompt, asked.relation_id, asked.target_new, asked.target_true, asked.subject)
    kept = {name: tuple(group) for name, group in groups.items() if group}
    return CounterFactRecord(row.case_id, rewrite, (), (), groups=kept)
