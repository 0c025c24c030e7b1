"""Records keep the data set's form, and say which record and field is wrong."""

import re

import pytest
from support.records import GAZI, changed

from tl_rome.counterfact import CounterFactRecord
from tl_rome.errors import InputError, RecordError
from tl_rome.facts import EditRequest


def test_the_documents_record_is_read():
    record = CounterFactRecord.from_dict(GAZI)
    assert record.request == EditRequest("The headquarters of {} is in", "Gazi University", "Glasgow", "Ankara")
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
    "no object at all": (["Gazi University"], "number 3 is a list, not an object"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records_are_refused_by_record_and_field(name):
    data, message = MALFORMED[name]
    with pytest.raises(RecordError, match=re.escape(message)) as caught:
        CounterFactRecord.from_dict(data, "number 3")
    assert isinstance(caught.value, InputError)
