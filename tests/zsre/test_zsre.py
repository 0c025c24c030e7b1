"""zsRE's layout, and its scores against plain transformers."""

import json

import pytest
import torch
from support import plain
from support.evaluation import RandomEdit
from support.families import KINDS

from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.errors import RecordError
from tl_rome.zsre import ZsreRecord, load_zsre, score_zsre

ROW = {
    "subject": "Big Ben",
    "src": "What city is Big Ben in?",
    "pred": "Paris",
    "rephrase": "In what city does Big Ben stand?",
    "alt": "Rome",
    "answers": ["London, in England", "London"],
    "loc": "nq question: who wrote the iliad",
    "loc_ans": "Homer of Chios",
    "cond": "Paris >> Rome || What city is Big Ben in?",
}
OTHER = {**ROW, "subject": "The Kremlin", "src": "Where is The Kremlin?", "rephrase": "Where?", "answers": ["Moscow"]}


def test_the_layout_is_read(tmp_path):
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([ROW, OTHER]))
    first, second = load_zsre(path)
    assert (first.case_id, first.answer, second.answer) == (0, "London, in England", "Moscow")
    assert (first.request.fact.prompt, first.request.target_new) == (ROW["src"], "London, in England")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"portability": []}, "record 4: unknown fields portability"),
        ({"answers": []}, r"answers is \[\]"),
        ({"subject": "big ben"}, "does not contain the subject 'big ben'"),
        ({"loc": 3}, "loc is 3; a text is needed"),
        ({"rephrase": " "}, "rephrase is ' '; give a text"),
    ],
)
def test_what_is_not_understood_is_refused(change, message):
    with pytest.raises(RecordError, match=message):
        ZsreRecord.from_dict({**ROW, **change}, 4)


def share(hf, tokenizer, prompt, answer):
    """By hand: one forward pass for each token of the answer."""
    tokens, gold, hits = tokenizer(prompt)["input_ids"], plain.ids(tokenizer, " " + answer), []
    for token in gold:
        hits.append(plain.greedy(hf, tokens, 1) == [token])
        tokens = [*tokens, token]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_means_over_tokens_as_plain_transformers_give_them(tiny, family_dir, family, kind):
    """Gemma 2 begins every text with BOS, which is no token of an answer."""
    model, hf = tiny(family, kind), plain.load(family_dir(family))
    rows = [ROW, OTHER]
    # Answers that the model gives in part, so that shares differ from 0 and from "all tokens".
    told = model.tokenizer.decode(plain.greedy(hf, model.tokenizer(ROW["src"])["input_ids"], 1)).strip() or "London"
    rows.append({**ROW, "answers": [f"{told} in England"]})
    records = [ZsreRecord.from_dict(row, place) for place, row in enumerate(rows)]
    for record, found in zip(records, score_zsre(model, records), strict=True):
        asked = {
            "efficacy": (record.question, record.answer),
            "paraphrase": (record.rephrase, record.answer),
            "specificity": (record.unrelated + "?", record.unrelated_answer),
        }
        expected = {name: share(hf, model.tokenizer, *pair) for name, pair in asked.items()}
        assert vars(found) == pytest.approx(expected)


def test_each_record_is_scored_in_its_own_edit(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[0])
    records = [ZsreRecord.from_dict(row, place) for place, row in enumerate([ROW, OTHER])]
    edits = [RandomEdit(strength=5.0)(model, record.request) for record in records]
    together = score_zsre(model, records, edits=VirtualEdits(model, edits))
    for record, edit, found in zip(records, edits, together, strict=True):
        with edit.applied(model), torch.no_grad():
            assert score_zsre(model, [record]) == [found]
