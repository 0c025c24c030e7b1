import json

import pytest
import torch

from tl_rome.errors import InputError, StorageError
from tl_rome.fact_files import (
    load_facts,
    load_known_facts,
    load_pararel,
    save_facts,
    template_of,
)
from tl_rome.facts import Fact


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def pararel(tmp_path):
    for name, patterns in {
        "P19": ["[X] was born in [Y].", "[Y] is where [X] was born."],
        "P36": ["[Y], of [X]"],
    }.items():
        write_jsonl(tmp_path / "patterns" / f"{name}.jsonl", [{"pattern": pattern} for pattern in patterns])
        pairs = [{"sub_label": f"Person {i}", "obj_label": f"Town {i}"} for i in range(6)]
        write_jsonl(tmp_path / "facts" / f"{name}.jsonl", pairs)
    write_jsonl(tmp_path / "facts" / "P1.jsonl", [{"sub_label": "a", "obj_label": "b"}])
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "template"),
    [
        ("[X] was born in [Y].", "{} was born in"),
        ("The capital of [X] is [Y] .", "The capital of {} is"),
        ("[X]'s capital, [Y],", "{}'s capital,"),
        ("[X], developed by [Y]", "{}, developed by"),
        ("[Y] is the capital of [X].", None),
        ("The official language of [X] is the [Y] language.", None),
        ("[X] and [X] are in [Y].", None),
        ("Somewhere in [Y].", None),
        ("[X] {} is in [Y].", None),
        ("[X] is in-[Y].", None),
    ],
)
def test_templates_end_just_before_the_object(pattern, template):
    assert template_of(pattern) == template


def test_pararel_gives_relations_with_a_usable_template(pararel):
    (relation,) = load_pararel(pararel)
    assert (relation.name, relation.templates) == ("P19", ("{} was born in",))
    assert relation.facts()[2] == Fact("{} was born in", "Person 2", "Town 2")


@pytest.mark.parametrize(
    ("name", "message"), [("P1", r"no patterns and facts for \['P1'\]"), ("P36", "ends in the obj")]
)
def test_a_relation_asked_for_in_vain_is_an_error(pararel, name, message):
    with pytest.raises(InputError, match=message):
        load_pararel(pararel, [name])
    with pytest.raises(InputError, match="any relation"):
        load_pararel(pararel / "nothing")


def test_samples_follow_the_generator_and_do_not_repeat(pararel):
    (relation,) = load_pararel(pararel)
    first, again, other = (relation.sample(4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 4
    assert len(relation.sample(100, generator=torch.Generator())) == 6


def test_known_facts_records(tmp_path):
    path = tmp_path / "known.json"
    record = {"subject": "Vinson Massif", "attribute": "Antarctica", "prompt": "Vinson Massif is located in"}
    path.write_text(json.dumps([record]))
    assert load_known_facts(path) == [Fact("{} is located in", "Vinson Massif", "Antarctica")]
    for damaged in ("[{}]", "[", '{"a": 1}'):
        path.write_text(damaged)
        with pytest.raises(StorageError, match=r"known.json is no list of known-facts records"):
            load_known_facts(path)


def test_facts_round_trip_and_damaged_lines_are_named(tmp_path):
    facts = [Fact("{} is in", "東京", "Japan"), Fact("The {} is in", "Louvre")]
    path = save_facts(tmp_path / "facts.jsonl", facts)
    assert load_facts(path) == facts
    for line in ("{", "[]", '{"template": 3, "subject": "a"}', '{"subject": "a"}'):
        path.write_text(json.dumps({"template": "{} is", "subject": "a"}) + f"\n\n{line}\n")
        with pytest.raises(StorageError, match="line 3 of"):
            load_facts(path)


def test_the_reference_copies_can_be_read(shared_data):
    relations = load_pararel(shared_data / "data" / "pararel")
    assert len(relations) > 30
    assert all(fact.prompt.startswith(fact.subject) or "{}" in fact.template for r in relations for fact in r.facts())
    assert len(load_known_facts(shared_data / "data" / "known_facts.json")) > 600
