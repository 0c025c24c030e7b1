"""Relations to build records from: templates, facts, and beginnings for generations.

Two sources: ParaRel's own folders (Elazar et al. 2021), and one JSON text per relation, in which the facts are listed
by object, as those of the embedded sample are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tl_rome.counterfact.records import Target
from tl_rome.errors import StorageError
from tl_rome.fact_files import read_lines, template_of
from tl_rome.facts import Fact


@dataclass(frozen=True)
class StatedFact:
    """A tuple (s, r, o); the relation is the one that holds it."""

    subject: str
    """Name of the entity."""
    object: Target
    """What it stands in the relation to."""
    number: int
    """Place among the facts of all relations that were read: `pararel_idx`."""


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

    def __post_init__(self) -> None:
        for template in (*self.templates, *self.generation_prompts):
            Fact(template, self.relation_id)
        for fact in self.facts:
            Fact("{}", fact.subject, fact.object.str)


def generation_prompts() -> dict[str, tuple[str, ...]]:
    """Beginnings for ParaRel's relations, by relation_id, written for this package."""
    text = resources.files("tl_rome.data").joinpath("generation_prompts.json").read_text("utf-8")
    return {relation: tuple(prompts) for relation, prompts in json.loads(text).items()}


def read_pararel(folder: str | Path, prompts: Mapping[str, Sequence[str]] | None = None) -> list[Relation]:
    """Read ParaRel's `patterns/` and `facts/`.

    Patterns that do not end with the object are left out, a left-to-right model cannot be asked by them; so are
    duplicates among facts.

    Args:
        folder: Holds both, with one JSONL file per relation.
        prompts: Generation prompts by relation_id; None takes `generation_prompts`.

    Returns:
        Relations with at least one usable pattern, by name of their files.

    Raises:
        StorageError: If a file is missing or damaged.
    """
    folder, prompts = Path(folder), generation_prompts() if prompts is None else prompts
    files = sorted((folder / "patterns").glob("*.jsonl"))
    if not files:
        raise StorageError(f"{folder} has no patterns/*.jsonl; give ParaRel's data folder")
    relations, number = [], 0
    for file in files:
        patterns = (row["pattern"] for row in read_lines(file, ("pattern",)))
        templates = dict.fromkeys(template for pattern in patterns if (template := template_of(pattern)))
        rows = read_lines(folder / "facts" / file.name, ("sub_label", "obj_label"))
        facts = dict.fromkeys((row["sub_label"].strip(), row["obj_label"].strip()) for row in rows)
        if templates:
            numbered = (StatedFact(name, Target(target), number + i) for i, (name, target) in enumerate(facts))
            more = tuple(prompts.get(file.stem, ()))
            relations.append(Relation(file.stem, tuple(templates), tuple(numbered), more))
        number += len(facts)
    return relations


def read_relations(texts: Mapping[str, str], prompts: Mapping[str, Sequence[str]] | None = None) -> list[Relation]:
    """Read relations from JSON texts: `{"templates": [...], "facts": {object: [subject, ...]}}`.

    Args:
        texts: By relation_id.
        prompts: As in `read_pararel`.

    Raises:
        StorageError: If a text is not of this form.
    """
    prompts = generation_prompts() if prompts is None else prompts
    relations, number = [], 0
    for relation_id, text in texts.items():
        try:
            data = json.loads(text)
            pairs = [(subject, target) for target, subjects in data["facts"].items() for subject in subjects]
            facts = tuple(StatedFact(name, Target(target), number + i) for i, (name, target) in enumerate(pairs))
            more = tuple(prompts.get(relation_id, ()))
            relations.append(Relation(relation_id, tuple(data["templates"]), facts, more))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"relation {relation_id} has no templates and facts by object ({error!r})") from error
        number += len(facts)
    return relations
