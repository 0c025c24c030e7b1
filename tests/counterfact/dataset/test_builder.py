"""Built records keep the rules of appendix D, follow the generator, and say what was left out."""

import doctest
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tl_rome.counterfact.dataset.builder import BuilderConfig, build_records
from tl_rome.counterfact.groups import PromptAnswer
from tl_rome.counterfact.report.composition import tabulate_composition
from tl_rome.errors import InputError
from tl_rome.fact_files import Relation, StatedFact, Target, load_pararel

TEMPLATES = ("{} is in", "{} lies in", "{} stands in", "The city of {} is")
# Ten landmarks of Rome, five of Paris, one of Oslo; the Forum is stated to be in Rome and in Paris.
END = ("home to", "proud of its")
CITIES = {
    "Rome": [f"Roman {i}" for i in range(9)] + ["Forum"],
    "Paris": [f"Parisian {i}" for i in range(4)] + ["Forum"],
    "Oslo": ["Opera"],
}


def relation(**changes):
    pairs = [(subject, city) for city, subjects in CITIES.items() for subject in subjects]
    facts = tuple(StatedFact(subject, Target(city), i) for i, (subject, city) in enumerate(pairs))
    parts = {"relation_id": "P276", "templates": TEMPLATES, "facts": facts, "generation_prompts": ("Near {} are",)}
    return Relation(**{**parts, **changes})


def build(*relations, seed=0, source=None, **config):
    generator = torch.Generator().manual_seed(seed)
    return build_records(relations, generator=generator, config=BuilderConfig(**config), neighbors=source)


def city_of(prompt):
    """Cities of the subject that a prompt names."""
    (subject,) = {name for names in CITIES.values() for name in names if prompt in {t.format(name) for t in TEMPLATES}}
    return {city for city, names in CITIES.items() if subject in names}


def test_records_keep_the_rules_of_the_data_set():
    built = build(relation())
    assert len(built.records) == 15
    assert [record.case_id for record in built.records] == list(range(15))
    for record in built.records:
        rewrite = record.requested_rewrite
        subject, true, new = rewrite.subject, rewrite.target_true.str, rewrite.target_new.str
        assert true in city_of(TEMPLATES[0].format(subject))
        assert new not in city_of(TEMPLATES[0].format(subject))
        asked = {rewrite.prompt.format(subject), *record.paraphrase_prompts}
        assert len(asked) == 3
        assert asked <= {template.format(subject) for template in TEMPLATES}
        assert len(set(record.neighborhood_prompts)) == 10
        assert all(true in city_of(p) and new not in city_of(p) for p in record.neighborhood_prompts)
        assert all(new in city_of(p) and true not in city_of(p) for p in record.attribute_prompts)
        assert not any(subject in p for p in record.neighborhood_prompts)
        assert record.generation_prompts == (f"Near {subject} are",) * 10
        assert record.pararel_idx is not None
        assert rewrite.subject == relation().facts[record.pararel_idx].subject
    assert built.left_out == {("P276", "too few subjects share the object"): 1}


def test_new_objects_are_drawn_by_how_often_they_occur():
    paris = Relation("P276", TEMPLATES, tuple(StatedFact(f"Parisian {i}", Target("Paris"), i) for i in range(300)))
    others = tuple(
        StatedFact(f"{city} {i}", Target(city), i) for city, n in (("Rome", 90), ("Oslo", 10)) for i in range(n)
    )
    built = build(Relation("P276", TEMPLATES, paris.facts + others))
    drawn = Counter(
        r.requested_rewrite.target_new.str for r in built.records if "Parisian" in r.requested_rewrite.subject
    )
    assert drawn.total() == 300
    # 0.9 with a standard error of 0.017
    assert drawn["Rome"] / 300 == pytest.approx(0.9, abs=0.06)


def test_the_generator_decides_everything():
    first, again, other = (build(relation(), seed=seed).records for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_sizes_can_be_chosen():
    built = build(relation(), per_relation=4, neighbors=3, paraphrases=1, attributes=0, generations=2)
    assert len(built.records) == 4
    assert built.left_out == {("P276", "there are enough records of this relation"): 12}
    (record, *_) = built.records
    lengths = (
        record.paraphrase_prompts,
        record.neighborhood_prompts,
        record.attribute_prompts,
        record.generation_prompts,
    )
    assert [len(prompts) for prompts in lengths] == [1, 3, 0, 2]
    with pytest.raises(InputError, match="neighbors is -1; give a number of at least 0"):
        BuilderConfig(neighbors=-1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"templates": TEMPLATES[:2]}, "2 templates are too few for a rewrite and 2 paraphrases"),
        ({"facts": relation().facts[:9]}, "the relation has no other object"),
    ],
)
def test_relations_that_allow_no_record_say_why(changes, reason):
    built = build(relation(**changes))
    assert built.records == ()
    assert {why for _, why in built.left_out} == {reason}


def test_the_example_in_the_docstring_is_true():
    (example,) = doctest.DocTestFinder().find(build_records, "build_records", globs={})
    found = doctest.DocTestRunner().run(example)
    assert found.failed == 0 < found.attempted


def test_neighbors_can_come_from_elsewhere():
    def neighbors(relation_id, target):
        assert relation_id == "P276"
        return [f"{target.str} from afar {i}" for i in range(3)]

    built = build(relation(), source=neighbors)
    assert len(built.records) == 16
    for record in built.records:
        true = record.requested_rewrite.target_true.str
        assert all(f"{true} from afar" in prompt for prompt in record.neighborhood_prompts)


@pytest.mark.slow
@pytest.mark.leg("3.9")
def test_thousands_of_records_from_pararel(shared_data):
    relations = load_pararel(shared_data / "data" / "pararel")
    built = build_records(relations, generator=torch.Generator().manual_seed(0), config=BuilderConfig(per_relation=100))
    facts = sum(len(relation.facts) for relation in relations)
    assert len(built.records) > 2000
    assert len(built.records) + sum(built.left_out.values()) == facts
    table = {row[0]: row[1:] for row in tabulate_composition(built.records).rows}
    assert table["Records"][::2] == (f"{len(built.records):,.1f}", "1.0")
    assert table["Neighborhood Prompts"][2] == "10.0"
    assert all(record.neighborhood_prompts and record.generation_prompts for record in built.records)


def test_reversed_prompts_ask_for_the_subject_after_the_new_object():
    both = relation(reversed_templates=("{} is home to", "{} is proud of its"))
    plain, one, many = (build(both, **options).records for options in ({}, {"reversed": 1}, {"reversed": 9}))
    for before, record, more in zip(plain, one, many, strict=True):
        rewrite = record.requested_rewrite
        asked = [PromptAnswer(f"{rewrite.target_new.str} is {rest}", (rewrite.subject,)) for rest in END]
        assert (before.groups, record.groups) == ({}, {"reversed": tuple(asked[:1])})
        assert more.groups == {"reversed": tuple(asked)}
        assert replace(record, groups={}) == before  # nothing else is drawn in another way
    assert not build(relation(), reversed=1).records[0].groups
