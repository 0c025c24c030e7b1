"""Records of KnowEdit, MQuAKE and RippleEdits: read by hand, nothing unknown passed over, what is left out told."""

import json
import logging

import pytest

from tl_rome.counterfact import PromptAnswer, load_knowedit, load_mquake, load_rippleedits
from tl_rome.errors import RecordError

KNOWEDIT = {
    "subject": "Ada Example",
    "prompt": "The employer of Ada Example is",
    "target_new": "Acme",
    "ground_truth": ["Initech", "Initech Ltd"],
    "rephrase_prompt": "Who pays Ada?",
    "cond": "Initech >> Acme",
    "portability": {
        "Reasoning": [
            {"prompt": "The seat of Ada Example's employer is in", "ground_truth": [["Oslo", "Kristiania"], ["Norway"]]}
        ],
        "Subject_Aliasing": [{"prompt": "The employer of A. E. is", "ground_truth": "Acme"}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The gender of Ada Example is", "ground_truth": [" female"]},
            {"prompt": "The child of Ada Example is", "ground_truth": [[""]]},
        ],
        "Forgetfulness": None,
    },
}
HOP = {"question": "Who leads Acme?", "cloze": "Acme is led by", "answer": "Bo", "answer_alias": ["Bo Example"]}
MQUAKE = {
    "case_id": 12,
    "requested_rewrite": [
        {
            "prompt": "{} works for",
            "relation_id": "P108",
            "target_new": {"str": "Acme", "id": "Q1"},
            "target_true": {"str": "Initech", "id": "Q2"},
            "subject": "Ada Example",
            "question": "Who employs Ada Example?",
        }
    ],
    "questions": ["Who leads the employer of Ada Example?", "Who is the boss of Ada Example's employer?"],
    "answer": "Cy",
    "answer_alias": [],
    "answer_extended": ["Cy"],
    "new_answer": "Bo",
    "new_answer_alias": ["Bo Example"],
    "single_hops": [HOP],
    "new_single_hops": [{**HOP, "cloze": "Ada Example works for", "answer": "Acme", "answer_alias": []}, HOP],
    "orig": {"triples": [["Q3", "P108", "Q2"]]},
}


def query(prompt, *answers, **more):
    named = [{"value": name, "aliases": aliases} for name, *aliases in answers]
    ids = {"query_type": "regular", "subject_id": "Q3", "relation": "MOTHER", "target_ids": ["Q9"], "phrase": None}
    return {"prompt": prompt, "answers": named, **ids, **more}


def stated(prompt, **more):
    return {"prompt": prompt, "subject_id": "Q3", "relation": "PLACE_OF_BIRTH", "target_id": "Q1", **more}


TEST = {"test_queries": [query("Her mother is", ("Eve", "E."), ("Eva",))], "test_condition": "OR"}
RIPPLE = {
    "example_type": "popular",
    "edit": stated(
        "The place of birth of Ada Example is Washington, D.C..",
        previous_fact=stated("The place of birth of Ada Example is Woking."),
    ),
    "Relation_Specifity": [{**TEST, "condition_queries": [query("Her mother is", ("Eve",))]}],
    "Logical_Generalization": [],
    "Compositionality_I": [{**TEST, "test_queries": TEST["test_queries"] * 2, "condition_queries": []}],
}
LAYOUTS = {
    "KnowEdit": (load_knowedit, KNOWEDIT),
    "MQuAKE": (load_mquake, MQUAKE),
    "RippleEdits": (load_rippleedits, RIPPLE),
}


@pytest.fixture
def read(tmp_path):
    def with_rows(load, *rows, **options):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows))
        return load(path, **options)

    return with_rows


def test_knowedit(read, caplog):
    (record,) = read(load_knowedit, KNOWEDIT)
    request = record.request
    assert (request.fact.prompt, request.subject) == (KNOWEDIT["prompt"], "Ada Example")
    assert (request.target_new, request.target_true) == ("Acme", "Initech")
    assert record.groups == {
        "Reasoning": (PromptAnswer("The seat of Ada Example's employer is in", ("Oslo", "Kristiania", "Norway")),),
        "Subject_Aliasing": (PromptAnswer("The employer of A. E. is", ("Acme",)),),
        "Relation_Specificity": (PromptAnswer("The gender of Ada Example is", ("female",)),),
        "rephrase": (PromptAnswer("Who pays Ada?", ("Acme",)),),
    }
    assert "1 prompts without an answer" in caplog.text


def test_mquake(read, caplog):
    (record,) = read(load_mquake, MQUAKE, {**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"] * 2})
    assert (record.case_id, record.request.fact.prompt) == (12, "Ada Example works for")
    bo = ("Bo", "Bo Example")
    assert record.groups == {
        "question": (PromptAnswer("Who employs Ada Example?", ("Acme",)),),
        "single hops": (PromptAnswer("Ada Example works for", ("Acme",)), PromptAnswer("Acme is led by", bo)),
        "multi-hop": tuple(PromptAnswer(question, bo) for question in MQUAKE["questions"]),
    }
    assert "1 records: they do not rewrite one fact" in caplog.text


def test_rippleedits(read, caplog):
    new = {**RIPPLE, "edit": {**RIPPLE["edit"], "previous_fact": None}}
    odd = {**RIPPLE, "edit": {**RIPPLE["edit"], "relation": "AWARD_RECEIVED"}}
    (record,) = read(load_rippleedits, new, RIPPLE, odd)
    assert (record.case_id, record.requested_rewrite.prompt) == (1, "The place of birth of {} is")
    assert (record.request.subject, record.request.target_new) == ("Ada Example", "Washington, D.C.")
    assert (record.request.target_true, record.requested_rewrite.relation_id) == ("Woking", "PLACE_OF_BIRTH")
    one = PromptAnswer("Her mother is", ("Eve", "E.", "Eva"))
    assert record.groups == {"Relation_Specifity": (one,), "Compositionality_I": (one, one)}
    for told in (
        "1 records: they have no previous fact",
        "1 records: the name of the subject cannot be told in AWARD_RECEIVED; give it in subjects",
        "1 tests' conditions",
        "1 tests' joining of several queries by OR",
    ):
        assert told in caplog.text
    assert len(read(load_rippleedits, RIPPLE, odd, subjects={"Q3": "Ada Example"})) == 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_understood_is_refused_by_name(read, name, caplog):
    load, row = LAYOUTS[name]
    with caplog.at_level(logging.WARNING), pytest.raises(RecordError, match=rf"number 1 .*{name}: .*\['novelty'\]"):
        read(load, row, {**row, "novelty": 1})
    without = dict(row)
    del without[next(name for name in row if name not in ("case_id", "example_type"))]
    with pytest.raises(RecordError, match=rf"number 0 is no record of {name}: it has no \["):
        read(load, without)
    other, theirs = next((key, each) for key, (_, each) in LAYOUTS.items() if key != name)
    with pytest.raises(RecordError, match=rf"number 0 is a record of {other} .* read it with load_{other.lower()}"):
        read(load, theirs)
    with pytest.raises(RecordError, match="gives no records"):
        read(load)


def test_fields_inside_are_checked_too(read):
    deep = {**KNOWEDIT, "locality": {"Forgetfulness": [{"prompt": "a", "ground_truth": "b", "hint": "c"}]}}
    with pytest.raises(RecordError, match=r"locality\['Forgetfulness'\]\[0\] has unknown fields \['hint'\]"):
        read(load_knowedit, deep)
    with pytest.raises(RecordError, match="test_condition is 'NOT'"):
        read(
            load_rippleedits, {**RIPPLE, "Forgetfulness": [{**TEST, "test_condition": "NOT", "condition_queries": []}]}
        )
