"""Free answers of many edited models in one batch are those of each prompt alone, chosen token by token."""

import pytest
import torch
from support.evaluation import QUICK, RECORDS, RandomEdit, run
from support.families import KINDS

from tl_rome.counterfact.evaluation.continuation import continuation
from tl_rome.counterfact.evaluation.free import answer_freely
from tl_rome.counterfact.metrics.free import natural_stop
from tl_rome.counterfact.results import CaseResult
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.tokens import encode

each_kind = pytest.mark.parametrize("kind", KINDS)


def said_alone(model, prompt, new_tokens):
    """Greedy by whole forward passes, stopping at end of text."""
    start = tokens = encode(model, prompt)
    for _ in range(new_tokens):
        best = model(tokens[None])[0, -1].argmax()
        if best == model.tokenizer.eos_token_id:
            break
        tokens = torch.cat([tokens, best[None]])
    return natural_stop(continuation(model, tokens, len(start)))


@each_kind
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_answers_are_those_of_each_prompt_alone_in_edited_weights(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    edits = [RandomEdit(dense=bool(i % 2))(model, record.request) for i, record in enumerate(RECORDS)]
    together, untouched = (answer_freely(model, RECORDS, 6, edits=each) for each in (VirtualEdits(model, edits), None))
    for record, edit, found in zip(RECORDS, edits, together, strict=True):
        with edit.applied(model):
            for name in ("rewrite", "paraphrase"):
                prompts = record.prompts(name)
                assert [each.prompt for each in found[name]] == list(prompts)
                assert [each.continuation for each in found[name]] == [said_alone(model, p, 6) for p in prompts]
    assert together != untouched


@each_kind
def test_nothing_after_the_end_of_text_is_said(fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind)
    whole = answer_freely(model, RECORDS[:1], 6)[0]["rewrite"][0]
    start = encode(model, whole.prompt)
    third = start
    for _ in range(3):
        third = torch.cat([third, model(third[None])[0, -1].argmax()[None]])
    tokenizer, usual = model.tokenizer, model.tokenizer.eos_token_id
    tokenizer.eos_token_id = int(third[-1])
    try:
        found = answer_freely(model, RECORDS[:1], 6)[0]["rewrite"][0]
        assert found.continuation == said_alone(model, whole.prompt, 6)
    finally:
        tokenizer.eos_token_id = usual
    assert len(found.continuation) < len(whole.continuation)


def test_answers_are_stored_and_a_run_goes_on(fresh_tiny, tmp_path):
    model, editor = fresh_tiny("gpt2", KINDS[0]), RandomEdit()
    whole = run(model, editor, free=True)
    run(model, editor, free=True, store=tmp_path)
    file = next((tmp_path / "editors").glob("*.jsonl"))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]))
    again = run(model, editor, free=True, store=tmp_path)
    assert [(each.before, each.after) for each in again] == [(each.before, each.after) for each in whole]
    assert all(each.after.free_rewrite and CaseResult.from_dict(each.to_dict()).after == each.after for each in again)
    assert not run(model, editor, config=QUICK)[0].after.free_rewrite
