"""Named groups of prompts: read, measured as each answer alone, shown in every table; absent, they change nothing."""

import json
import math
from dataclasses import replace

import pytest
from support.evaluation import QUICK, RECORDS, RandomEdit, run
from support.families import KINDS
from support.records import GAZI
from support.results import case, measurement

from tl_rome.counterfact import AnswerScores, CounterFactRecord, PromptAnswer, summarize, to_dataset, write_report
from tl_rome.counterfact.evaluation.measure import measure
from tl_rome.counterfact.results import UNEDITED, CaseResult
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.errors import InputError, RecordError
from tl_rome.scoring import score_targets

GROUPS = {
    "reversed": (PromptAnswer("Rome is home to", ("The Eiffel Tower", "La tour")),),
    "one hop": (PromptAnswer("It is in the country of", ("Italy",)), PromptAnswer("Its mayor speaks", ("Italian",))),
}
GROUPED = (replace(RECORDS[0], groups=GROUPS), RECORDS[1], replace(RECORDS[2], groups={"reversed": GROUPS["one hop"]}))


def test_files_have_groups_where_there_are_any():
    plain = json.loads(json.dumps(GROUPED[0].to_dict()))
    assert plain["groups"]["reversed"] == [{"prompt": "Rome is home to", "answers": ["The Eiffel Tower", "La tour"]}]
    assert CounterFactRecord.from_dict(plain) == GROUPED[0]
    assert "groups" not in RECORDS[0].to_dict()
    assert {GROUPED[0], RECORDS[0]} == {RECORDS[0], GROUPED[0]}  # records can still be members of sets


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], r"record 1067: groups is \[\]"),
        ({"a": [{"prompt": "x", "answer": "y"}]}, "record 1067: .*answers"),
        ({"a": [{"prompt": "x", "answers": []}]}, "record 1067: the prompt 'x' has no answer"),
        ({"a": [{"prompt": "x", "answers": [" y"]}]}, "' y', an answer to 'x', is empty or has white space"),
        ({"a": [{"prompt": " ", "answers": ["y"]}]}, "record 1067: the prompt of an answer is ' '"),
        ({"a": []}, "record 1067: groups: 'a' has a blank name or no prompts"),
        ({"a": [{"prompt": "x", "answers": ["\ud800"]}]}, "half a character"),
    ],
)
def test_a_group_that_is_not_one_is_refused_with_its_record(groups, message):
    with pytest.raises(RecordError, match=message):
        CounterFactRecord.from_dict({**GAZI, "groups": groups})


@pytest.mark.parametrize("kind", KINDS)
def test_answers_score_as_each_alone_in_edited_weights(fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind)
    edits = [RandomEdit(dense=bool(i % 2))(model, record.request) for i, record in enumerate(GROUPED)]
    together = measure(model, GROUPED, QUICK, edits=VirtualEdits(model, edits))
    for record, edit, found in zip(GROUPED, edits, together, strict=True):
        assert found.measurement.groups.keys() == record.groups.keys()
        with edit.applied(model):
            for name, group in record.groups.items():
                scores = found.measurement.groups[name]
                for place, asked in enumerate(group):
                    alone = score_targets(model, [asked.prompt] * len(asked.answers), asked.answers)
                    assert scores.logprob[place] == pytest.approx(alone.logprob.tolist(), abs=1e-4)
                    assert scores.tokens[place] == tuple(alone.n_tokens.tolist())
                    assert scores.argmax[place] == tuple(alone.is_argmax.tolist())
    others = measure(model, RECORDS[:3], QUICK, edits=VirtualEdits(model, edits))
    for found, plain in zip(together, others, strict=True):
        assert replace(found.measurement, groups={}).rewrite.tokens_new == plain.measurement.rewrite.tokens_new
        assert plain.measurement.groups == {}


def test_a_run_goes_on_and_lines_without_groups_are_read(fresh_tiny, tmp_path):
    model = fresh_tiny("gpt2", KINDS[0])
    whole = run(model, RandomEdit(), GROUPED)
    run(model, RandomEdit(), GROUPED, store=tmp_path)
    (file,) = (tmp_path / "editors").glob("*.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    again = run(model, RandomEdit(), GROUPED, store=tmp_path)
    assert [(each.before, each.after) for each in again] == [(each.before, each.after) for each in whole]
    older = whole[1].to_dict()
    del older["before"]["groups"], older["after"]["groups"]
    assert CaseResult.from_dict(older).after == whole[1].after


SCORES = AnswerScores(((-1.0, -4.0), (-2.0,)), ((1, 4), (1,)), ((False, True), (False,)))
GROUPED_AFTER = measurement(True, [True], [True], groups={"reversed": SCORES})
PLAIN = measurement(True, [True], [True])


def test_columns_are_named_after_the_group():
    rows = summarize([case(1, GROUPED_AFTER, GROUPED_AFTER), case(2, PLAIN, PLAIN)])
    found = rows.rows["rome"]
    assert found["A(reversed)"].n == 1
    assert found["A(reversed)"].mean == 50
    assert found["P(reversed)"].mean == pytest.approx(100 * (math.exp(-1) + math.exp(-2)) / 2)
    assert "- `A(reversed)`: every token of an answer" in rows.markdown
    assert rows.rows[UNEDITED]["A(reversed)"].mean == 50
    assert rows.difference("rome")["P(reversed)"].mean == 0
    assert "A(reversed)" not in summarize([case(1, PLAIN)]).rows["rome"]


def test_the_draft_takes_whole_answers():
    scores = AnswerScores(((-2.0, -3.0),), ((1, 3),), ((False, False),))
    results = [case(1, measurement(True, [], [], groups={"x": scores}))]
    found = {name: summarize(results, conventions=name).rows["rome"]["P(x)"].mean for name in ("draft", "released")}
    assert found == pytest.approx({"draft": 100 * math.exp(-2), "released": 100 * math.exp(-1)})


def test_scores_differ_in_number():
    with pytest.raises(InputError, match="differ in number"):
        AnswerScores(((-1.0,),), ((1, 2),), ((True,),))


def test_tables_and_the_page_show_groups(tmp_path):
    results = [case(1, GROUPED_AFTER, GROUPED_AFTER), case(2, PLAIN, PLAIN)]
    data = to_dataset(results)
    assert (data["A(reversed)"][0], data["unedited A(reversed)"][1]) == (50.0, None)
    assert data[0]["after"]["groups"][0]["group"] == "reversed"
    assert data[0]["after"]["groups"][0]["tokens"] == [[1, 4], [1]]
    assert "A(reversed)" not in to_dataset(results[1:]).column_names
    group = (PromptAnswer("Rome is home to", ("The Louvre", "La")), PromptAnswer("There is", ("x",)))
    record = replace(CounterFactRecord.from_dict({**GAZI, "case_id": 1}), groups={"reversed": group})
    record = replace(record, paraphrase_prompts=record.paraphrase_prompts[:1])
    record = replace(record, neighborhood_prompts=record.neighborhood_prompts[:1])
    page = write_report(tmp_path / "page.html", results, summarize(results), records=[record]).read_text("utf-8")
    assert "Rome is home to … The Louvre | La" in page
    assert "<dt>A(reversed)</dt>" in page
    fewer = replace(record, groups={"reversed": group[:1]})
    with pytest.raises(InputError, match="record 1 has other prompts in 'reversed'"):
        write_report(tmp_path / "page.html", results, summarize(results), records=[fewer])
