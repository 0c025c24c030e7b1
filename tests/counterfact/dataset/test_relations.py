"""ParaRel's patterns become prompts that end before the object, and facts keep their places."""

import json

import pytest

from tl_rome.counterfact.dataset.relations import generation_prompts, read_pararel, read_relations
from tl_rome.errors import InputError, StorageError

PATTERNS = {
    "[X] was born in [Y].": "{} was born in",
    "[X], whose headquarters are in [Y] .": "{}, whose headquarters are in",
    "The capital of [X] is [Y] .": "The capital of {} is",
    "[X] plays [Y]": "{} plays",
    "[Y] is the capital of [X].": None,
    "[X] is a [Y] player.": None,
    "[X] was a [Y]-born person.": None,
    "[Y] player [X] ": None,
}
FACTS = [
    ("Allan Peiper", "Alexandra"),
    ("Paul Mounsey", "Scotland"),
    ("Allan Peiper", "Alexandra"),
    ("Bach", "Eisenach"),
]


def write(folder, name, rows):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")


@pytest.fixture
def pararel(tmp_path):
    write(tmp_path, "patterns/P19.jsonl", [{"pattern": pattern, "tense": "past"} for pattern in PATTERNS])
    write(tmp_path, "patterns/P2.jsonl", [{"pattern": "[X] is [Y]."}])
    write(tmp_path, "patterns/P3.jsonl", [{"pattern": "[Y] has [X]."}])
    for name in ("P19", "P2", "P3"):
        write(tmp_path, f"facts/{name}.jsonl", [{"sub_label": s, "obj_label": o} for s, o in FACTS])
    return tmp_path


def test_patterns_that_end_with_the_object_become_templates(pararel):
    relation, other = read_pararel(pararel, {"P19": ["{} grew up in"]})
    assert relation.templates == tuple(template for template in PATTERNS.values() if template)
    assert relation.generation_prompts == ("{} grew up in",)
    assert (other.relation_id, other.templates, other.generation_prompts) == ("P2", ("{} is",), ())
    assert [(fact.subject, fact.object.str) for fact in relation.facts] == [FACTS[0], FACTS[1], FACTS[3]]
    assert [fact.number for fact in (*relation.facts, *other.facts)] == [0, 1, 2, 3, 4, 5]


def test_damaged_folders_are_refused(pararel, tmp_path):
    with pytest.raises(StorageError, match="has no patterns"):
        read_pararel(tmp_path / "facts")
    (pararel / "facts" / "P2.jsonl").write_text('{"sub_label": "x"}', "utf-8")
    with pytest.raises(StorageError, match=r"line 1 of .*P2\.jsonl has not the text fields"):
        read_pararel(pararel)


def test_relations_are_listed_by_object():
    text = json.dumps({"templates": ["{} is in", "{} lies in"], "facts": {"Rome": ["A", "B"], "Paris": ["C"]}})
    one, two = read_relations({"P1": text, "P2": text}, {"P2": ["Near {} are"]})
    assert [(fact.subject, fact.object.str, fact.number) for fact in one.facts] == [
        ("A", "Rome", 0),
        ("B", "Rome", 1),
        ("C", "Paris", 2),
    ]
    assert two.facts[0].number == 3
    assert (one.generation_prompts, two.generation_prompts) == ((), ("Near {} are",))
    with pytest.raises(StorageError, match="relation P1 has no templates and facts"):
        read_relations({"P1": "[]"})
    with pytest.raises(InputError, match="exactly once"):
        read_relations({"P1": text.replace("{} is in", "is in")})


def test_generation_prompts_that_ship_cover_pararel(shared_data):
    prompts = generation_prompts()
    assert all(len(set(beginnings)) == 3 for beginnings in prompts.values())
    relations = read_pararel(shared_data / "data" / "pararel")
    assert all(relation.generation_prompts == prompts[relation.relation_id] for relation in relations)
