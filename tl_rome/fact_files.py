"""Facts from the files that others publish them in: ParaRel's patterns and objects, known-facts records, plain JSONL.

ParaRel (Elazar et al. 2021) writes a relation as patterns such as `[X] was born in [Y].` and, in a second file of the
same name, the pairs of subject and object that it holds for. COUNTERFACT's prompts were made from it (appendix D).
Only patterns that say nothing after `[Y]` can be completed by a model that reads from left to right.
"""

import builtins
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from tl_rome.arguments import Whole
from tl_rome.errors import InputError, StorageError
from tl_rome.facts import EditRequest, Fact
from tl_rome.storage.json_text import parse_json, refuse_halves
from tl_rome.storage.layouts import name_layout
from tl_rome.storage.parts import read_as
from tl_rome.storage.text import ending, read_text
from tl_rome.storage.writing import write_whole

_REWRITE = "write its facts as lines of JSON with template, subject and target"


@dataclass(frozen=True)
class Target:
    """An object o: its name, and its WikiData identifier where the source has one."""

    str: builtins.str
    """Name, without a leading space."""
    id: builtins.str | None = None
    """WikiData identifier such as Q90."""


@dataclass(frozen=True)
class StatedFact:
    """A tuple (s, r, o); the relation is the one that holds it."""

    subject: str
    """Name of the entity."""
    object: Target
    """What it stands in the relation to."""
    number: int
    """Place among the facts of all relations of the source: `pararel_idx`."""


@dataclass(frozen=True)
class Relation:
    """One relation r with everything said in it.

    Raises:
        InputError: If a template or generation prompt has not exactly one `{}`, or a name is empty.
    """

    relation_id: str
    """WikiData property such as P103."""
    templates: tuple[str, ...]
    """Paraphrases of each other, with a `{}` for the subject, ending just before the object."""
    facts: tuple[StatedFact, ...]
    """In the order of the source."""
    generation_prompts: tuple[str, ...] = ()
    """Beginnings about a subject whose continuation depends on the fact, with a `{}`."""
    reversed_templates: tuple[str, ...] = ()
    """The relation said the other way round, with a `{}` for the object, ending just before the subject."""

    def __post_init__(self) -> None:
        for template in (*self.templates, *self.generation_prompts, *self.reversed_templates):
            Fact(template, self.relation_id)
        for fact in self.facts:
            Fact("{}", fact.subject, fact.object.str)

    def prompts(self, template: str | None = None) -> list[Fact]:
        """Every fact, stated by one template (the first by default)."""
        return [Fact(template or self.templates[0], fact.subject, fact.object.str) for fact in self.facts]

    def sample(self, count: Whole, *, generator: torch.Generator) -> list[Fact]:
        """Facts drawn without replacement, each stated by a template drawn for it; at most as many as there are."""
        chosen = torch.randperm(len(self.facts), generator=generator)[:count].tolist()
        templates = torch.randint(len(self.templates), (len(chosen),), generator=generator).tolist()
        drawn = zip(templates, (self.facts[i] for i in chosen), strict=True)
        return [Fact(self.templates[template], fact.subject, fact.object.str) for template, fact in drawn]


def load_generation_prompts() -> dict[str, tuple[str, ...]]:
    """Beginnings for ParaRel's relations, by relation_id, written for this package."""
    text = resources.files("tl_rome.data").joinpath("generation_prompts.json").read_text("utf-8")
    return {relation: tuple(prompts) for relation, prompts in json.loads(text).items()}


def load_pararel(
    folder: str | Path,
    relations: Iterable[str] | None = None,
    *,
    generation_prompts: Mapping[str, Sequence[str]] | None = None,
) -> list[Relation]:
    """Read a copy of ParaRel: `patterns/P19.jsonl` beside `facts/P19.jsonl`.

    Patterns that do not end with the object are left out, as a left-to-right model cannot complete them, but those that
    end with the subject are the reversed templates; repeated facts are left out.

    Args:
        folder: Holds both folders.
        relations: Those to read, in this order; by default all with a usable pattern, by name.
        generation_prompts: By relation_id; None takes `load_generation_prompts`.

    Raises:
        InputError: If a relation is asked for that the folder lacks or that has no usable pattern.
        StorageError: If a file is missing or damaged.
    """
    beginnings = load_generation_prompts() if generation_prompts is None else generation_prompts
    found, number = {}, 0
    for name, templates, backward, pairs in _read_pararel(Path(folder)):
        facts = dict.fromkeys(pairs)
        if templates and facts:
            numbered = (StatedFact(subject, Target(target), number + i) for i, (subject, target) in enumerate(facts))
            more = tuple(beginnings.get(name, ()))
            found[name] = Relation(name, tuple(templates), tuple(numbered), more, tuple(backward))
        number += len(facts)
    wanted = list(found if relations is None else relations)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(
            f"{folder} has no facts of {missing}, or no pattern of them that ends in the object; it has {list(found)}"
        )
    return [found[name] for name in wanted]


def _read_pararel(folder: Path) -> Iterator[tuple[str, list[str], list[str], list[tuple[str, str]]]]:
    """Name, templates both ways, pairs of subject and object of every relation, pairs as often as the file has them."""
    files = sorted((folder / "patterns").glob("*.jsonl"))
    if not files:
        raise StorageError(f"{folder} has no patterns/*.jsonl; give ParaRel's data folder")
    for file in files:
        patterns = [row["pattern"] for row in load_lines(file, ("pattern",))]
        templates, backward = (
            list(dict.fromkeys(template for pattern in patterns if (template := template_of(pattern, *order))))
            for order in (("[X]", "[Y]"), ("[Y]", "[X]"))
        )
        rows = load_lines(folder / "facts" / file.name, ("sub_label", "obj_label"))
        yield file.stem, templates, backward, [(row["sub_label"].strip(), row["obj_label"].strip()) for row in rows]


def template_of(pattern: str, first: str = "[X]", last: str = "[Y]") -> str | None:
    """The prompt of a ParaRel pattern, or None where the one (the object) does not come last or the other not before.

    Args:
        pattern: With `[X]` for the subject and `[Y]` for the object.
        first: What becomes the slot.
        last: What the prompt ends before.
    """
    match = re.fullmatch(rf"(.*\S)\s+{re.escape(last)}[\s.,;]*", pattern.strip(), re.DOTALL)
    if match is None or match[1].count(first) != 1 or "{}" in match[1] or last in match[1]:
        return None
    return match[1].replace(first, "{}")


def load_facts(path: str | Path) -> list[Fact]:
    """Read facts from a ParaRel folder, from JSONL, or from JSON as the authors' known_facts; files may be gzipped.

    Lines of JSONL have `template`, `subject` and, optionally, `target` and `joiner`; more fields do no harm. Records of
    known_facts have `prompt`, `subject` and `attribute`, the object. A relation's templates take turns over its facts,
    and a fact that ParaRel repeats is asked again by the next template.

    Raises:
        StorageError: If it is absent, or damaged for what its name says.
        InputError: If a fact is not valid.
    """
    path = Path(path)
    if path.is_dir():
        relations = sorted(_read_pararel(path), key=lambda relation: (len(relation[0]), relation[0]))
        return [fact for _, templates, _, pairs in relations if templates for fact in _in_turn(templates, pairs)]
    if ending(path) == ".jsonl":
        facts = []
        for number, row in _numbered_lines(path, ("template", "subject"), ("target", "joiner")):
            with _named(f"line {number} of {path}"):
                facts.append(Fact(row["template"], row["subject"], row.get("target"), row.get("joiner")))
        return facts
    text, records, facts = read_text(path), None, []
    try:
        records = parse_json(text)
        refuse_halves(text, records)
        for number, record in enumerate(read_as(tuple[dict[str, Any], ...], records)):
            prompt, subject, target = (read_as(str, record[name], name) for name in ("prompt", "subject", "attribute"))
            with _named(f"number {number} of {path}"):
                facts.append(Fact.from_prompt(prompt, subject, target))
    except InputError:
        raise
    except (KeyError, ValueError) as error:
        first = records[0] if isinstance(records, list) and records else records
        problem = name_layout(first, "known facts", _REWRITE)
        place = f"number {len(facts)}: " if facts else ""
        raise StorageError(
            f"{path} is not a list of known-facts records ({f'it {problem}' if problem else f'{place}{error!r}'})"
        ) from error
    return facts


def load_sample_facts() -> list[Fact]:
    """Facts that ship with the package, written for it: well-known things, each with its object.

    Each subject is asked about once; a relation's templates take turns.
    """
    found = []
    for file in sorted(resources.files("tl_rome.data").joinpath("facts").iterdir(), key=lambda file: file.name):
        relation = json.loads(file.read_text("utf-8"))
        pairs = [(subject, target) for target, subjects in relation["facts"].items() for subject in subjects]
        found += _in_turn(relation["templates"], pairs)
    return found


def _in_turn(templates: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Fact]:
    """Facts whose templates take turns."""
    return [Fact(templates[i % len(templates)], subject, target) for i, (subject, target) in enumerate(pairs)]


def load_requests(path: str | Path) -> list[EditRequest]:
    """Read what to edit from JSONL: `template`, `subject`, `target_new` and, optionally, `target_true` and `joiner`.

    Args:
        path: File, gzipped or not; more fields do no harm, and blank lines are passed over.

    Raises:
        StorageError: If it cannot be read, or a line lacks a field; it names the line.
        InputError: If a request is not valid.
    """
    requests = []
    for number, row in _numbered_lines(path, ("template", "subject", "target_new"), ("target_true", "joiner")):
        with _named(f"line {number} of {path}"):
            more = row.get("target_true"), row.get("joiner")
            requests.append(EditRequest(row["template"], row["subject"], row["target_new"], *more))
    return requests


def save_facts(path: str | Path, facts: Iterable[Fact]) -> Path:
    """Write facts as JSONL that `load_facts` reads.

    Raises:
        StorageError: If the file cannot be written.
    """
    rows = (
        {name: value for name, value in asdict(fact).items() if (name, value) != ("joiner", None)} for fact in facts
    )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    return write_whole(Path(path), "".join(lines).encode())


def load_lines(path: str | Path, fields: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Records of a JSONL file.

    Args:
        path: File, gzipped or not; blank lines are passed over.
        fields: Names of text fields that every line must have.

    Raises:
        StorageError: If the file cannot be read, or a line lacks a field; it names the line.
    """
    for _, row in _numbered_lines(path, fields):
        yield row


def _numbered_lines(
    path: str | Path, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and record of each line; optional fields may be missing or null."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row = None
        try:
            row = parse_json(line)
            refuse_halves(line, row)
            found = {name: row[name] for name in fields}
        except (ValueError, KeyError, TypeError) as error:
            problem = name_layout(row, "facts", _REWRITE) if "template" in fields else None
            raise StorageError(
                f"line {number} of {path} {problem or f'does not have the text fields {fields} ({error!r})'}"
            ) from error
        found |= {name: row[name] for name in optional if row.get(name) is not None}
        wrong = [name for name, value in found.items() if not isinstance(value, str)]
        if wrong:
            raise StorageError(f"line {number} of {path}: {wrong} should be text")
        yield number, row


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Say where a fact comes from that is not valid."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{place}: {error}") from error
