"""RippleEdits (Cohen et al. 2024): what follows from an edit, and what must not.

Each of its six criteria becomes a group of that name, each query of a test a prompt with all names of its answers. The
paper counts a test where its conditions hold in the model; conditions are not applied here, so compare with the
unedited model. A test of several queries is scored query by query. Both are told when a file is read.

An edit is a sentence, "The name of the mother of X is Y.", without the names of its parts; the object is what the
sentence of the previous fact does not share, the subject what follows the relation's name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tl_rome.counterfact.layouts.reading import Notes, answered, collect, slotted
from tl_rome.counterfact.records import CounterFactRecord, RequestedRewrite
from tl_rome.fact_files import Target

_UNREAD = (
    "query_type",
    "target_ids",
    "phrase",
    "second_relation",
    "second_hop_target_ids",
    "target_id",
    "example_type",
)


@dataclass(frozen=True)
class _Answer:
    value: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Query:
    prompt: str
    answers: tuple[_Answer, ...]
    subject_id: Any
    relation: str


@dataclass(frozen=True)
class _Test:
    test_queries: tuple[_Query, ...]
    test_condition: Literal["OR", "AND"]
    condition_queries: tuple[_Query, ...]


@dataclass(frozen=True)
class _Fact:
    prompt: str
    subject_id: str
    relation: str


@dataclass(frozen=True)
class _Edit(_Fact):
    previous_fact: _Fact | None = None


@dataclass(frozen=True)
class _Row:
    edit: _Edit
    Relation_Specifity: tuple[_Test, ...] = ()
    Logical_Generalization: tuple[_Test, ...] = ()
    Subject_Aliasing: tuple[_Test, ...] = ()
    Compositionality_I: tuple[_Test, ...] = ()
    Compositionality_II: tuple[_Test, ...] = ()
    Forgetfulness: tuple[_Test, ...] = ()


def load_rippleedits(path: str | Path, *, subjects: Mapping[str, str] | None = None) -> list[CounterFactRecord]:
    """Read a file of RippleEdits; case_id is the place in it.

    Records are left out, with a warning that counts them, which have no previous fact, and so no object to compare
    with, or whose parts cannot be told apart.

    Args:
        path: Such as popular.json.
        subjects: Names by WikiData identifier, where the sentence does not show them.

    Raises:
        RecordError: If no record is left, or one is malformed or has a field that is not known.
        StorageError: If the file cannot be read.
    """
    return collect(path, "RippleEdits", _Row, partial(_record, subjects or {}), unread=_UNREAD)


def _record(subjects: Mapping[str, str], row: _Row, number: int, notes: Notes) -> CounterFactRecord | str:
    edit, before = row.edit, row.edit.previous_fact
    if before is None:
        return "they have no previous fact"
    ends = [found.end() for found in re.finditer(r" (is|are)(?= )", edit.prompt)]
    stems = [edit.prompt[:end] for end in ends if before.prompt.startswith(edit.prompt[:end] + " ")]
    if len(stems) != 1:
        return "where the object begins cannot be told"
    (stem,) = stems
    new, true = (each.prompt.removeprefix(stem).strip().removesuffix(".") for each in (edit, before))
    subject = subjects.get(edit.subject_id) or _subject(stem, edit.relation)
    template = None if subject is None else slotted(stem, subject)
    if subject is None or template is None:
        return f"the name of the subject cannot be told in {edit.relation}; give it in subjects"
    if new == true or not new or not true:
        return "the objects are the same, or empty"
    tests = {
        "Relation_Specifity": row.Relation_Specifity,
        "Logical_Generalization": row.Logical_Generalization,
        "Subject_Aliasing": row.Subject_Aliasing,
        "Compositionality_I": row.Compositionality_I,
        "Compositionality_II": row.Compositionality_II,
        "Forgetfulness": row.Forgetfulness,
    }
    groups = {
        name: tuple(
            each
            for test in part
            for query in test.test_queries
            for each in answered(query.prompt, (n for a in query.answers for n in (a.value, *a.aliases)), notes)
        )
        for name, part in tests.items()
    }
    for test in (each for part in tests.values() for each in part):
        notes["tests' conditions, so that figures are of all tests"] += bool(test.condition_queries)
        several = len(test.test_queries) > 1
        notes[f"tests' joining of several queries by {test.test_condition}: each is scored alone"] += several
    rewrite = RequestedRewrite(template, edit.relation, Target(new), Target(true), subject)
    return CounterFactRecord(number, rewrite, (), (), groups={name: group for name, group in groups.items() if group})


def _subject(stem: str, relation: str) -> str | None:
    """What follows "The name of the <relation> of" in a sentence without its object."""
    words = re.escape(relation.lower().replace("_", " "))
    found = re.fullmatch(rf"The (?:names? of the )?{words}s? of (.+) (?:is|are)", stem)
    return found and found[1]
