"""Facts of others' files: ParaRel's patterns become prompts that end before the object, and facts keep their places."""

import gzip
import json

import pytest
import torch

from tl_rome.errors import InputError, StorageError
from tl_rome.fact_files import (
    load_facts,
    load_generation_prompts,
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
        "P19": ["[X] was born in [Y].", "[Y] is where [X] was born.", "[X] comes from [Y]", "[X] was born in [Y]"],
        "P36": ["[Y], of [X]"],
        "P5": ["[X] is [Y]."],
    }.items():
        write_jsonl(tmp_path / "patterns" / f"{name}.jsonl", [{"pattern": pattern} for pattern in patterns])
        pairs = [{"sub_label": f"Person {i}", "obj_label": f"Town {i} "} for i in (*range(6), 0)]
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
    relation, other = load_pararel(pararel, generation_prompts={"P19": ["{} grew up in"]})
    assert (relation.relation_id, relation.templates) == ("P19", ("{} was born in", "{} comes from"))
    assert relation.generation_prompts == ("{} grew up in",)
    assert (other.relation_id, other.templates, other.generation_prompts) == ("P5", ("{} is",), ())
    assert [(fact.subject, fact.object.str) for fact in relation.facts] == [
        (f"Person {i}", f"Town {i}") for i in range(6)
    ]
    assert [fact.number for fact in relation.facts] == list(range(6))
    assert [fact.number for fact in other.facts] == list(range(12, 18)), "those of P36 are counted too"
    assert relation.prompts()[2] == Fact("{} was born in", "Person 2", "Town 2")
    assert [each.relation_id for each in load_pararel(pararel, ["P5", "P19"])] == ["P5", "P19"]


@pytest.mark.parametrize("name", ["P1", "P36", "P7"])
def test_a_relation_asked_for_in_vain_is_an_error(pararel, name):
    message = rf"has no facts of \['{name}'\], or no pattern of them that ends in the object; it has \['P19', 'P5'\]"
    with pytest.raises(InputError, match=message):
        load_pararel(pararel, ["P19", name])


def test_damaged_folders_are_refused(pararel):
    with pytest.raises(StorageError, match=r"nothing has no patterns/\*\.jsonl; give ParaRel's data folder"):
        load_pararel(pararel / "nothing")
    (pararel / "facts" / "P36.jsonl").write_text('{"sub_label": "x"}', "utf-8")
    with pytest.raises(StorageError, match=r"line 1 of .*P36\.jsonl does not have the text fields"):
        load_pararel(pararel)


def test_templates_take_turns_over_the_facts_of_a_folder(pararel):
    facts = load_facts(pararel)
    assert facts[:3] == [
        Fact("{} is", "Person 0", "Town 0"),
        Fact("{} is", "Person 1", "Town 1"),
        Fact("{} is", "Person 2", "Town 2"),
    ], "P5 comes before P19"
    assert facts[7:10] == [
        Fact("{} was born in", "Person 0", "Town 0"),
        Fact("{} comes from", "Person 1", "Town 1"),
        Fact("{} was born in", "Person 2", "Town 2"),
    ]
    assert facts[13] == Fact("{} was born in", "Person 0", "Town 0"), "the repeated fact takes the next template"


def test_samples_follow_the_generator_and_do_not_repeat(pararel):
    relation = load_pararel(pararel)[0]
    first, again, other = (relation.sample(4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 4
    assert len(relation.sample(100, generator=torch.Generator())) == 6


def test_known_facts_records(tmp_path):
    path = tmp_path / "known.json"
    record = {"subject": "Vinson Massif", "attribute": "Antarctica", "prompt": "Vinson Massif is located in"}
    path.write_text(json.dumps([record]))
    assert load_facts(path) == [Fact("{} is located in", "Vinson Massif", "Antarctica")]
    for damaged in ("[{}]", "[", '{"a": 1}'):
        path.write_text(damaged)
        with pytest.raises(StorageError, match=r"known.json is not a list of known-facts records"):
            load_facts(path)


def test_files_of_other_data_sets_are_called_what_they_are(tmp_path):
    record = {"case_id": 1, "requested_rewrite": {}, "neighborhood_prompts": []}
    for name in ("x.json", "x.JSONL"):
        (tmp_path / name).write_text(json.dumps([record] if name == "x.json" else record))
        with pytest.raises(StorageError, match=r"is a record of COUNTERFACT .*; read it with load_counterfact"):
            load_facts(tmp_path / name)
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b'[{"src": "", "rephrase": "", "alt": "", "loc": ""}]', mtime=0))
    with pytest.raises(StorageError, match=r"zsre_mend_eval.*; read it with tl_rome.zsre.load_zsre"):
        load_facts(tmp_path / "x.json.gz")
    (tmp_path / "x.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(StorageError, match="is a Git LFS pointer"):
        load_facts(tmp_path / "x.json")


def test_facts_round_trip_and_damaged_lines_are_named(tmp_path):
    facts = [Fact("{} is in", "東京", "Japan"), Fact("The {} is in", "Louvre"), Fact("{}は", "東京", "日本", "")]
    path = save_facts(tmp_path / "facts.jsonl", facts)
    assert load_facts(path) == facts
    assert ["joiner" in line for line in path.read_text("utf-8").splitlines()] == [False, False, True]
    for line in ("{", "[]", '{"template": 3, "subject": "a"}', '{"subject": "a"}'):
        path.write_text(json.dumps({"template": "{} is", "subject": "a"}) + f"\n\n{line}\n")
        with pytest.raises(StorageError, match="line 3 of"):
            load_facts(path)


def test_the_reference_copies_can_be_read(shared_data):
    relations, prompts = load_pararel(shared_data / "data" / "pararel"), load_generation_prompts()
    assert len(relations) > 30
    assert all("{}" in fact.template for relation in relations for fact in relation.prompts())
    assert all(len(set(beginnings)) == 3 for beginnings in prompts.values())
    assert all(relation.generation_prompts == prompts[relation.relation_id] for relation in relations)
    assert len(load_facts(shared_data / "data" / "known_facts.json")) > 600


@pytest.mark.parametrize(
    ("pattern", "template"),
    [
        ("[Y] is home to [X].", "{} is home to"),
        ("The [Y]-owned [X]", "The {}-owned"),
        ("[X] is in [Y].", None),
        ("[Y] [X] is old.", None),
        ("[X] of [Y] is [X]", None),
    ],
)
def test_a_pattern_that_ends_with_the_subject_is_a_reversed_template(pattern, template):
    assert template_of(pattern, "[Y]", "[X]") == template
