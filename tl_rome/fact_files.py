"""Facts from the files that others publish them in: ParaRel's patterns and objects, known-facts records, plain JSONL.

ParaRel (Elazar et al. 2021) writes a relation as patterns such as `[X] was born in [Y].` and, in a second file of the
same name, the pairs of subject and object that it holds for. COUNTERFACT's prompts were made from it (section 5.1).
Only patterns that say nothing after `[Y]` can be completed by a model that reads from left to right.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from tl_rome.errors import InputError, StorageError
from tl_rome.facts import Fact
from tl_rome.storage.files import write_whole


@dataclass(frozen=True)
class Relation:
    """A relation r with the ways of stating it and the pairs it holds for."""

    name: str
    """Wikidata identifier, such as "P19"."""
    templates: tuple[str, ...]
    """Prompts with `{}` in the subject's place that end just before the object."""
    pairs: tuple[tuple[str, str], ...]
    """Subjects and their objects."""

    def facts(self, template: str | None = None) -> list[Fact]:
        """Every pair, stated by one template (the first by default)."""
        return [Fact(template or self.templates[0], subject, target) for subject, target in self.pairs]

    def sample(self, count: int, *, generator: torch.Generator) -> list[Fact]:
        """Pairs drawn without replacement, each stated by a template drawn for it; at most as many as there are."""
        chosen = torch.randperm(len(self.pairs), generator=generator)[:count].tolist()
        templates = torch.randint(len(self.templates), (len(chosen),), generator=generator).tolist()
        return [Fact(self.templates[t], *self.pairs[pair]) for t, pair in zip(templates, chosen, strict=True)]


def load_pararel(folder: str | Path, relations: Iterable[str] | None = None) -> list[Relation]:
    """Read a copy of ParaRel: `patterns/P19.jsonl` beside `facts/P19.jsonl`.

    Args:
        folder: The folder that holds both.
        relations: Names of the relations to read; by default all that have facts and a usable pattern.

    Raises:
        InputError: If a relation is asked for that the folder lacks or that has no usable pattern.
        StorageError: If a file is damaged.
    """
    folder = Path(folder)
    known = {path.stem for path in folder.glob("patterns/*.jsonl")} & {p.stem for p in folder.glob("facts/*.jsonl")}
    wanted = list(relations) if relations is not None else sorted(known, key=lambda name: (len(name), name))
    missing = [name for name in wanted if name not in known]
    if missing or not known:
        raise InputError(f"{folder} has no patterns and facts for {missing or 'any relation'}; it has {sorted(known)}")
    found = [_relation(folder, name) for name in wanted]
    unusable = [relation.name for relation in found if not relation.templates]
    if relations is not None and unusable:
        raise InputError(f"no pattern of {unusable} ends in the object after naming the subject; leave them out")
    return [relation for relation in found if relation.templates and relation.pairs]


def template_of(pattern: str) -> str | None:
    """The prompt of a ParaRel pattern, or None where the object does not come last or the subject not before it."""
    match = re.fullmatch(r"(.*\S)\s+\[Y\][\s.,;]*", pattern.strip(), re.DOTALL)
    if match is None or match[1].count("[X]") != 1 or "{}" in match[1] or "[Y]" in match[1]:
        return None
    return match[1].replace("[X]", "{}")


def load_known_facts(path: str | Path) -> list[Fact]:
    """Read the authors' list of known facts: JSON records with `prompt`, `subject` and `attribute` (the object).

    Raises:
        StorageError: If the file is absent or damaged.
        InputError: If a record's prompt does not contain its subject.
    """
    try:
        records = json.loads(Path(path).read_text("utf-8"))
        return [Fact.from_prompt(r["prompt"], r["subject"], r["attribute"]) for r in records]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise StorageError(f"{path} is no list of known-facts records ({error!r})") from error


def load_facts(path: str | Path) -> list[Fact]:
    """Read facts from JSONL: `template`, `subject` and, optionally, `target` in each line; more fields do no harm.

    Raises:
        StorageError: If the file is absent or a line damaged.
        InputError: If a line's fact is not valid.
    """
    return [
        Fact(row["template"], row["subject"], row.get("target")) for row in read_lines(path, ("template", "subject"))
    ]


def read_facts(path: str | Path) -> list[Fact]:
    """Facts of whichever kind a path holds: a ParaRel folder, JSONL, or JSON as the authors' known_facts.

    A relation's templates take turns over its facts.

    Raises:
        StorageError: If it cannot be read as what its name says.
        InputError: If a fact is not valid.
    """
    path = Path(path)
    if path.is_dir():
        pairs = [(relation.templates, enumerate(relation.pairs)) for relation in load_pararel(path)]
        return [Fact(ts[i % len(ts)], subject, target) for ts, found in pairs for i, (subject, target) in found]
    return load_facts(path) if path.suffix == ".jsonl" else load_known_facts(path)


def own_facts() -> list[Fact]:
    """Facts that ship with the package, written for it: well-known things, each with its object.

    Each subject is asked about once; a relation's templates take turns.
    """
    found = []
    for file in sorted(resources.files("tl_rome.data").joinpath("facts").iterdir(), key=lambda file: file.name):
        relation = json.loads(file.read_text("utf-8"))
        pairs = [(subject, target) for target, subjects in relation["facts"].items() for subject in subjects]
        templates = relation["templates"]
        found += [Fact(templates[i % len(templates)], subject, target) for i, (subject, target) in enumerate(pairs)]
    return found


def save_facts(path: str | Path, facts: Iterable[Fact]) -> Path:
    """Write facts as JSONL that `load_facts` reads.

    Raises:
        StorageError: If the file cannot be written.
    """
    lines = [json.dumps(asdict(fact), ensure_ascii=False) + "\n" for fact in facts]
    return write_whole(Path(path), "".join(lines).encode())


def read_lines(path: str | Path, fields: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Records of a JSONL file.

    Args:
        path: File; blank lines are passed over.
        fields: Names of text fields that every line must have.

    Raises:
        StorageError: If the file cannot be read, or a line lacks a field; it names the line.
    """
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [name for name in fields if not isinstance(row[name], str)]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"line {number} of {path} has not the text fields {fields} ({error!r})") from error
        if missing:
            raise StorageError(f"line {number} of {path}: {missing} should be text")
        yield row


def _relation(folder: Path, name: str) -> Relation:
    patterns = [row["pattern"] for row in read_lines(folder / "patterns" / f"{name}.jsonl", ("pattern",))]
    templates = [template for template in map(template_of, patterns) if template is not None]
    rows = read_lines(folder / "facts" / f"{name}.jsonl", ("sub_label", "obj_label"))
    return Relation(name, tuple(templates), tuple((row["sub_label"], row["obj_label"]) for row in rows))
