"""Records keep the data set's form, and say which record and field is wrong."""

import inspect
import json
import re
from dataclasses import replace

import pytest
from support.records import GAZI, changed

from tl_rome.counterfact import CounterFactRecord, load_counterfact
from tl_rome.errors import InputError, RecordError
from tl_rome.facts import EditRequest
from tl_rome.storage.files import digest


def test_the_papers_sample_record_is_read():
    record = CounterFactRecord.from_dict(GAZI)
    expected = EditRequest("The headquarters of {} is in", "Gazi University", "Glasgow", "Ankara", joiner=" ")
    assert record.request == expected
    assert record.requested_rewrite.target_new.id == "Q4093"
    assert record.pararel_idx == 21136
    assert record.attribute_prompts == ()
    assert record.prompts("rewrite") == ("The headquarters of Gazi University is in",)
    assert record.prompts("neighborhood") == tuple(GAZI["neighborhood_prompts"])
    assert record.prompts("neighborhood_plus")[1] == (
        "The headquarters of Gazi University is in Glasgow. Agricultural Bank is headquartered in"
    )


def test_to_dict_is_the_released_form():
    record = CounterFactRecord.from_dict(changed("requested_rewrite", "target_new", "id"))
    written = record.to_dict()
    assert CounterFactRecord.from_dict(written) == record
    assert written["requested_rewrite"]["target_new"] == {"str": "Glasgow"}
    assert written["requested_rewrite"]["subject"] == "Gazi University"
    assert written["paraphrase_prompts"] == GAZI["paraphrase_prompts"]


def test_the_joiner_is_in_a_file_only_where_it_is_not_a_space():
    written = {joiner: CounterFactRecord.from_dict({**GAZI, "joiner": joiner}).to_dict() for joiner in (" ", "", None)}
    assert written[" "] == CounterFactRecord.from_dict(GAZI).to_dict()
    assert "joiner" not in written[" "]
    for joiner in ("", None):
        assert written[joiner] == {**written[" "], "joiner": joiner}
        assert CounterFactRecord.from_dict(json.loads(json.dumps(written[joiner]))).joiner == joiner


def test_the_digest_of_a_data_set_is_that_of_stores_made_before_there_was_a_joiner():
    assert digest([CounterFactRecord.from_dict(GAZI).to_dict()]) == "c8136c757959b98c"
    assert digest([record.to_dict() for record in load_counterfact()]) == "bf6e27c934ab2a29"


def test_prompts_of_counterfact_plus_are_joined_as_the_record_says():
    record = CounterFactRecord.from_dict({**GAZI, "joiner": ""})
    assert record.prompts("neighborhood_plus")[1] == (
        "The headquarters of Gazi University is inGlasgow. Agricultural Bank is headquartered in"
    )


SUBJECT = "does not contain the subject 'Gazi University' (matching is case-sensitive)"
MALFORMED = {
    "no case_id": (changed("case_id"), "record number 3: case_id is missing"),
    "case_id of a wrong type": (changed("case_id", value="x"), "record x: case_id is 'x'; a whole number is needed"),
    "no rewrite": (changed("requested_rewrite"), "record 1067: requested_rewrite is missing"),
    "no subject": (changed("requested_rewrite", "entity"), "requested_rewrite.subject is missing"),
    "empty subject": (
        changed("requested_rewrite", "entity", value=" "),
        "record 1067: requested_rewrite: subject is emp",
    ),
    "no new target": (changed("requested_rewrite", "target_new"), "requested_rewrite.target_new is missing"),
    "no true name": (
        changed("requested_rewrite", "target_true", "str"),
        "record 1067: requested_rewrite.target_true.str is missing",
    ),
    "empty target": (changed("requested_rewrite", "target_true", "str", value=""), "target_true is empty"),
    "spaced target": (
        changed("requested_rewrite", "target_new", "str", value=" Rome"),
        "target_new: ' Rome' has white",
    ),
    "identical targets": (
        changed("requested_rewrite", "target_new", "str", value="Ankara"),
        "record 1067: requested_rewrite.target_new: 'Ankara' is target_true",
    ),
    "template without a place": (
        changed("requested_rewrite", "prompt", value="Gazi University is in"),
        "record 1067: requested_rewrite: template 'Gazi University is in' contains '{}' 0 times",
    ),
    "no paraphrases": (changed("paraphrase_prompts"), "record 1067: paraphrase_prompts is missing"),
    "prompts in one text": (changed("paraphrase_prompts", value="Gazi University"), "paraphrase_prompts is 'Gazi"),
    "prompt of a wrong type": (changed("neighborhood_prompts", 0, value=7), "neighborhood_prompts[0] is 7"),
    "blank prompt": (changed("neighborhood_prompts", 1, value=" "), "record 1067: neighborhood_prompts[1]: is blank"),
    "paraphrase of another": (
        changed("paraphrase_prompts", 1, value="Gazi is in"),
        f"record 1067: paraphrase_prompts[1]: 'Gazi is in' {SUBJECT}",
    ),
    "generation about another": (
        changed("generation_prompts", 0, value="It is in"),
        f"record 1067: generation_prompts[0]: 'It is in' {SUBJECT}",
    ),
    "joiner of a wrong type": ({**GAZI, "joiner": ["", " "]}, "record 1067: joiner is ['', ' ']; a text is needed"),
    "unknown joiner": ({**GAZI, "joiner": "-"}, "record 1067: joiner: is '-'; use ' ', '', or null"),
    "half a character in a prompt": (
        changed("neighborhood_prompts", 1, value="It is \ud83d"),
        r"record 1067: neighborhood_prompts[1]: 'It is \ud83d' holds half a character",
    ),
    "half a character in a target": (
        changed("requested_rewrite", "target_new", "str", value="\udfff"),
        "record 1067: requested_rewrite.target_new.str: ",
    ),
    "prompts that would fill a page": (
        changed("paraphrase_prompts", value={"Gazi University": "x" * 500}),
        f"paraphrase_prompts is {{'Gazi University': '{'x' * 36}...; a list is needed",
    ),
    "not an object at all": (["Gazi University"], "number 3 is a list, not an object"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records_are_refused_by_record_and_field(name):
    data, message = MALFORMED[name]
    with pytest.raises(RecordError, match=re.escape(message)) as caught:
        CounterFactRecord.from_dict(data, "number 3")
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("number", ["../../elsewhere", "3", True, 3.0, None])
def test_a_number_that_is_none_is_refused_since_files_are_named_by_it(number):
    record = object.__new__(CounterFactRecord)
    for name, value in {**vars(CounterFactRecord.from_dict(GAZI)), "case_id": number}.items():
        object.__setattr__(record, name, value)
    with pytest.raises(RecordError, match=re.escape(f"record {number!r}: case_id is no whole number")):
        inspect.unwrap(CounterFactRecord.__post_init__)(record)


def test_half_a_character_made_in_python_is_refused():
    record = CounterFactRecord.from_dict(GAZI)
    with pytest.raises(RecordError, match=r"generation_prompts\[0\]: 'Gazi University \\ud83d' holds half"):
        replace(record, generation_prompts=("Gazi University \ud83d",))


def test_a_number_that_would_drive_a_terminal_is_shown_escaped():
    with pytest.raises(RecordError, match=re.escape(r"record \x1b]0;x\x07: case_id is '\x1b]0;x\x07'; a whole number")):
        CounterFactRecord.from_dict({**GAZI, "case_id": "\x1b]0;x\x07"})
