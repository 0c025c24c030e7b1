"""Relations read from JSON texts; their facts are numbered across all of them."""

import json

import pytest

from tl_rome.counterfact.dataset.relations import parse_relations
from tl_rome.errors import InputError, StorageError


def test_relations_are_listed_by_object():
    text = json.dumps({"templates": ["{} is in", "{} lies in"], "facts": {"Rome": ["A", "B"], "Paris": ["C"]}})
    one, two = parse_relations({"P1": text, "P2": text}, {"P2": ["Near {} are"]})
    assert [(fact.subject, fact.object.str, fact.number) for fact in one.facts] == [
        ("A", "Rome", 0),
        ("B", "Rome", 1),
        ("C", "Paris", 2),
    ]
    assert two.facts[0].number == 3
    assert (one.generation_prompts, two.generation_prompts) == ((), ("Near {} are",))
    with pytest.raises(StorageError, match="relation P1 has no templates and facts"):
        parse_relations({"P1": "[]"})
    with pytest.raises(InputError, match="exactly once"):
        parse_relations({"P1": text.replace("{} is in", "is in")})
