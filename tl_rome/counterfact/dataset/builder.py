"""Compiling records from relations and facts, as appendix D does from ParaRel.

For a fact (s, r, o^c): the rewriting prompt is drawn among r's templates, and o* among the relation's other facts, so
that an object is drawn by how often it occurs. Paraphrases are drawn from the remaining templates. Neighbourhood
prompts are drawn from all pairs of a template and a subject that shares (r, o^c), attribute prompts likewise for
(r, o*), and generation prompts with replacement from the relation's own. Reversed prompts, which the appendix does not
have, ask for the subject after o*, as in "Rome is home to the"; nothing is drawn for them. Many subjects may be right
there: see how their probability moves, not how large it is.

Where the appendix leaves it open: o* is never an object that the facts give to s, and subjects that have both objects
are excluded from neighbourhood prompts, because either answer is correct.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from tl_rome.arguments import Whole
from tl_rome.counterfact.groups import PromptAnswer
from tl_rome.counterfact.records import CounterFactRecord, RequestedRewrite
from tl_rome.fact_files import Relation, StatedFact, Target
from tl_rome.facts import Fact

T = TypeVar("T")
Neighbors = Callable[[str, Target], Sequence[str]]
"""Subjects that stand in a relation, given by its relation_id, to an object."""


@dataclass(frozen=True, kw_only=True)
class BuilderConfig:
    """How many prompts of each kind a record gets; the defaults are the paper's.

    Raises:
        InputError: If a number is negative.
    """

    paraphrases: Whole = 2
    """Paraphrase prompts."""
    neighbors: Whole = 10
    """Neighbourhood prompts; facts with fewer pairs to draw from are left out."""
    attributes: Whole = 10
    """Attribute prompts, or as many as there are."""
    generations: Whole = 10
    """Generation prompts, drawn with replacement; none if the relation has none."""
    reversed: Whole = 0
    """Reversed prompts, from the first of the relation's reversed templates; they are the group "reversed"."""
    per_relation: Whole | None = None
    """At most this many records of each relation, drawn at random; None makes all that can be made."""


@dataclass(frozen=True)
class Compilation:
    """What was built."""

    records: tuple[CounterFactRecord, ...]
    """By relation, in the order of the facts; case_id counts from 0."""
    left_out: Mapping[tuple[str, str], int]
    """Facts that gave no record: how many, by relation_id and reason."""


def build_records(
    relations: Iterable[Relation],
    *,
    generator: torch.Generator,
    config: BuilderConfig | None = None,
    neighbors: Neighbors | None = None,
) -> Compilation:
    """Compile a record of every fact that allows one.

    Args:
        relations: Templates, facts and generation prompts.
        generator: Source of all draws; the same one gives the same records.
        config: Sizes; None is the paper's.
        neighbors: Where subjects that share an object come from, such as `WikiDataNeighbors`; None takes the facts.

    Returns:
        Records, and what was left out and why.

    Examples:
        A relation is some templates, each ending just before the object, and the facts that they state; `load_pararel`
        reads such relations from files.

        >>> import torch
        >>> from tl_rome.counterfact import BuilderConfig, Relation, StatedFact, Target, build_records
        >>> countries = {"Paris": "France", "Lyon": "France", "Nice": "France", "Rome": "Italy", "Turin": "Italy"}
        >>> facts = [StatedFact(city, Target(country), i) for i, (city, country) in enumerate(countries.items())]
        >>> templates = ("{} is in", "{} lies in", "{} is a city in")
        >>> relation = Relation("P17", templates, tuple(facts), generation_prompts=("{} is known for",))
        >>> config = BuilderConfig(paraphrases=1, neighbors=2)
        >>> built = build_records([relation], generator=torch.Generator().manual_seed(0), config=config)
        >>> [record.requested_rewrite.subject for record in built.records]
        ['Paris', 'Lyon', 'Nice', 'Rome', 'Turin']
        >>> built.records[3].requested_rewrite.target_new.str
        'France'
        >>> len(built.records[0].neighborhood_prompts), built.left_out
        (2, {})
    """
    config = config or BuilderConfig()
    records: list[CounterFactRecord] = []
    left_out: Counter[tuple[str, str]] = Counter()
    for relation in relations:
        draw = _Draw(relation, config, neighbors, generator)
        made: dict[int, CounterFactRecord] = {}
        for index in torch.randperm(len(relation.facts), generator=generator).tolist():
            enough = len(made) == config.per_relation
            found = "there are enough records of this relation" if enough else draw.record(relation.facts[index])
            if isinstance(found, str):
                left_out[relation.relation_id, found] += 1
            else:
                made[index] = found
        records.extend(made[index] for index in sorted(made))
    return Compilation(tuple(replace(record, case_id=i) for i, record in enumerate(records)), dict(left_out))


class _Draw:
    """Draws the records of one relation."""

    def __init__(
        self, relation: Relation, config: BuilderConfig, neighbors: Neighbors | None, generator: torch.Generator
    ) -> None:
        self.relation, self.config, self.generator = relation, config, generator
        self.neighbors = neighbors or self._stated
        self.objects: dict[str, set[str]] = defaultdict(set)
        self.subjects: dict[str, list[str]] = defaultdict(list)
        for fact in relation.facts:
            self.objects[fact.subject].add(fact.object.str)
            self.subjects[fact.object.str].append(fact.subject)

    def _stated(self, relation_id: str, target: Target) -> Sequence[str]:
        return self.subjects[target.str]

    def record(self, fact: StatedFact) -> CounterFactRecord | str:
        """The record of a fact, with case_id 0, or the reason why there is none."""
        relation, config, name = self.relation, self.config, fact.subject
        if len(relation.templates) <= config.paraphrases:
            return f"{len(relation.templates)} templates are too few for a rewrite and {config.paraphrases} paraphrases"
        if self.subjects.keys() <= self.objects[name]:
            return "the relation has no other object"
        new = self._other_object(fact)
        prompt, *paraphrases = self._choose(relation.templates, 1 + config.paraphrases)
        neighborhood = self._pairs(fact, fact.object, new, config.neighbors)
        if len(neighborhood) < config.neighbors:
            return "too few subjects share the object"
        beginnings, templates = relation.generation_prompts, relation.reversed_templates[: config.reversed]
        backward = tuple(PromptAnswer(Fact(template, new.str).prompt, (name,)) for template in templates)
        drawn = torch.randint(max(1, len(beginnings)), (config.generations,), generator=self.generator).tolist()
        return CounterFactRecord(
            case_id=0,
            requested_rewrite=RequestedRewrite(prompt, relation.relation_id, new, fact.object, name),
            paraphrase_prompts=tuple(Fact(template, name).prompt for template in paraphrases),
            neighborhood_prompts=neighborhood,
            attribute_prompts=self._pairs(fact, new, fact.object, config.attributes),
            generation_prompts=tuple(Fact(beginnings[i], name).prompt for i in drawn) if beginnings else (),
            pararel_idx=fact.number,
            groups={"reversed": backward} if backward else {},
        )

    def _other_object(self, fact: StatedFact) -> Target:
        """An object drawn by its frequency among the relation's facts, but not one that they give to the subject."""
        while True:
            index = int(torch.randint(len(self.relation.facts), (), generator=self.generator))
            new = self.relation.facts[index].object
            if new.str not in self.objects[fact.subject]:
                return new

    def _pairs(self, fact: StatedFact, shared: Target, other: Target, n: int) -> tuple[str, ...]:
        """Prompts about subjects of the shared object; those that have the other one too are left out."""
        found = dict.fromkeys(self.neighbors(self.relation.relation_id, shared))
        subjects = [name for name in found if name != fact.subject and other.str not in self.objects.get(name, ())]
        templates = self.relation.templates
        chosen = self._choose(range(len(subjects) * len(templates)), n)
        return tuple(Fact(templates[i % len(templates)], subjects[i // len(templates)]).prompt for i in chosen)

    def _choose(self, items: Sequence[T], n: int) -> list[T]:
        """Up to n items without replacement, in the order of the draw."""
        return [items[i] for i in torch.randperm(len(items), generator=self.generator)[:n].tolist()]
