"""Texts side by side are those that each model writes alone, with the same draws."""

import pytest
import torch
from support.evaluation import RECORDS, RandomEdit
from support.families import KINDS

from tl_rome.counterfact.experiments.side_by_side import SideBySide, continue_side_by_side
from tl_rome.counterfact.results import UNEDITED
from tl_rome.errors import InputError
from tl_rome.generation import sample_tokens
from tl_rome.tokens import encode

KIND = KINDS[0]
REQUEST = RECORDS[0].request
PROMPTS = ("The Eiffel Tower is", "Visitors of The Eiffel Tower say that it", "The Louvre")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def alone(model, new_tokens):
    """Each prompt continued by itself by the model as it is now."""
    generator = rng()
    for prompt in PROMPTS:
        tokens = encode(model, prompt)
        own = rng(int(torch.randint(2**63 - 1, (), generator=generator)))
        sampled = sample_tokens(model, tokens[None], new_tokens, generator=own)[0]
        yield prompt, model.tokenizer.decode(sampled.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_equal_those_of_each_edited_model_alone(fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind)
    edits = {"weak": RandomEdit()(model, REQUEST), "dense": RandomEdit(dense=True, strength=9.0)(model, REQUEST)}
    found = continue_side_by_side(model, PROMPTS, edits, new_tokens=9, generator=rng())
    assert list(found.texts) == [UNEDITED, "weak", "dense"]
    expected = {UNEDITED: list(alone(model, 9))}
    for name, edit in edits.items():
        with edit.applied(model):
            expected[name] = list(alone(model, 9))
    for name, texts in found.texts.items():
        for (prompt, whole), text in zip(expected[name], texts, strict=True):
            assert prompt + text == whole
    assert found.texts["dense"] != found.texts[UNEDITED]


def test_an_edit_that_changes_nothing_gives_the_unedited_text(tiny):
    model = tiny("gpt2", KIND)
    found = continue_side_by_side(model, PROMPTS, {"none": RandomEdit(strength=0.0)(model, REQUEST)}, generator=rng(1))
    assert found.texts["none"] == found.texts[UNEDITED]
    other = continue_side_by_side(model, PROMPTS, {}, generator=rng(2))
    assert other.texts[UNEDITED] != found.texts[UNEDITED]


def test_texts_are_shown_as_they_are():
    found = SideBySide(("One *and* two",), {UNEDITED: (" is\n\n<b>bold</b>",), "rome": (" is [link](x)",)})
    rows = [
        "model | text",
        "--- | ---",
        r"prompt | One \*and\* two",
        r"unedited | is \<b\>bold\</b\>",
        r"rome | is \[link\](x)",
    ]
    assert found.grid.markdown.splitlines()[:5] == [f"| {row} |" for row in rows]
    assert found.grid.table.row_count == 3
    assert found.to_dict() == {"prompts": list(found.prompts), "texts": {k: list(v) for k, v in found.texts.items()}}


def test_what_cannot_be_continued_is_refused(tiny):
    model = tiny("gpt2", KIND)
    with pytest.raises(InputError, match="0 prompts"):
        continue_side_by_side(model, (), {}, generator=rng())
    with pytest.raises(InputError, match="give the edit another name"):
        continue_side_by_side(model, PROMPTS, {UNEDITED: RandomEdit()(model, REQUEST)}, generator=rng())
    with pytest.raises(InputError, match="exceed the model's context"):
        continue_side_by_side(model, PROMPTS, {}, new_tokens=10_000, generator=rng())
