"""Several editors on zsRE: each in its own edits, beside the unedited model, with S and intervals by hand."""

import json
import re
from dataclasses import replace
from statistics import harmonic_mean

import pytest
from support.evaluation import RandomEdit
from support.families import KINDS
from support.zsre import RECORDS

from tl_rome.counterfact.results import UNEDITED
from tl_rome.errors import InputError
from tl_rome.tokens import encode
from tl_rome.zsre import ZsreRecord, ZsreResults, ZsreScores, evaluate_zsre, score_zsre

STRONG = 20.0


def told(model):
    """Three records whose answers their own strong edit makes the model give, each another one."""
    found = {}
    for number in range(200):
        record = ZsreRecord(
            number, f"Where is Place{number}?", f"Place{number}", "x", "Where?", "nq question: who", "Homer"
        )
        with RandomEdit(strength=STRONG)(model, record.request).applied(model):
            said = model.tokenizer.decode([int(model(encode(model, record.question)[None])[0, -1].argmax())])
        if re.fullmatch(r" [A-Za-z]+", said):
            found.setdefault(said, replace(record, answer=said.strip()))
    return list(found.values())[:3]


def test_editors_are_scored_in_their_own_edits_beside_the_unedited_model(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[0])
    records = told(model)
    refused = records[1]
    editors = {"strong": RandomEdit(strength=STRONG), "picky": RandomEdit(refused=(refused.subject,))}
    found = evaluate_zsre(model, records, editors, batch_size=2, progress=False)
    assert list(found.figures) == [UNEDITED, "strong", "picky"]
    assert list(found.figures[UNEDITED].values()) == score_zsre(model, records)
    for name, editor in editors.items():
        for record in records:
            if record.subject not in editor.refused:
                with editor(model, record.request).applied(model):
                    assert score_zsre(model, [record]) == [found.figures[name][record.case_id]]
    assert [scores.efficacy for scores in found.figures["strong"].values()] == [1.0, 1.0, 1.0]
    assert found.rows[UNEDITED]["efficacy"].mean < 100
    assert found.failures == {"strong": {}, "picky": {refused.case_id: f"NumericsError: no edit of {refused.subject}"}}
    assert found.rows["picky"]["S"].n == 2


def test_records_and_names_are_checked(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[0])
    for records in ([], [RECORDS[0], RECORDS[0]]):
        with pytest.raises(InputError, match="each with a case_id of its own"):
            evaluate_zsre(model, records)
    with pytest.raises(InputError, match="name of the model without edits"):
        evaluate_zsre(model, RECORDS, {UNEDITED: RandomEdit()})


BEFORE = {1: ZsreScores(0.25, 0.25, 0.5), 2: ZsreScores(0.25, 0.75, 0.5)}
AFTER = {1: ZsreScores(1.0, 0.5, 0.5), 2: ZsreScores(0.5, 1.0, 0.5), 3: ZsreScores(0.0, 0.0, 0.0)}
RESULTS = ZsreResults({UNEDITED: BEFORE, "rome": AFTER}, {"rome": {4: "InputError: x"}}, resamples=200)


def test_figures_by_hand():
    before, row, gain = RESULTS.rows[UNEDITED], RESULTS.rows["rome"], RESULTS.estimates("rome", UNEDITED)
    assert [before[name].mean for name in ("efficacy", "paraphrase", "specificity")] == [25, 50, 50]
    assert before["S"].mean == pytest.approx(harmonic_mean([25, 50, 50]))
    assert (row["efficacy"].mean, row["efficacy"].n) == (50, 3)
    assert (gain["efficacy"].mean, gain["paraphrase"].mean, gain["specificity"].mean, gain["S"].n) == (50, 25, 0, 2)
    assert gain["S"].mean == pytest.approx(harmonic_mean([75, 75, 50]) - before["S"].mean)
    # Two records, paired: a redrawn mean is that of one or of both.
    assert (gain["efficacy"].low, gain["efficacy"].high) == (25, 75)
    assert replace(RESULTS, seed=1).rows["rome"]["S"].mean == row["S"].mean


def test_tables(tmp_path):
    frame = RESULTS.to_frame()
    assert list(frame.columns) == ["editor", "figure", "mean", "low", "high", "n"]
    assert frame.set_index(["editor", "figure"]).loc[("rome", "paraphrase"), "mean"] == 50
    assert "1 failed edits are left out" in RESULTS.markdown
    assert "| rome - unedited | 2 |" in RESULTS.markdown
    with pytest.raises(InputError, match="no results of 'ft'; there are unedited, rome"):
        RESULTS.estimates("ft")
    with pytest.raises(InputError, match="no record has scores"):
        ZsreResults({UNEDITED: {}}, {})
    data, text = RESULTS.save(tmp_path / "new")
    assert text.read_text() == RESULTS.markdown
    assert json.loads(data.read_text())["rows"]["rome"]["paraphrase"]["mean"] == 50
    assert json.loads(data.read_text())["failures"] == {"rome": {"4": "InputError: x"}}
