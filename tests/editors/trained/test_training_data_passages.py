"""Passages and windows are read as the tokens that were drawn, and follow the generator."""

import pytest
import torch
from support.families import KINDS, SENTENCES

from tl_rome.editors.trained.data import passages as building
from tl_rome.editors.trained.data.locality import locality_texts
from tl_rome.editors.trained.data.passages import passage_examples
from tl_rome.editors.trained.data.samples import sampled_texts
from tl_rome.editors.trained.data.windows import draw_windows
from tl_rome.errors import InputError
from tl_rome.tokens import encode, encode_target

TEXTS = [" ".join(SENTENCES[first : first + 8]) for first in range(0, 56, 8)] + ["", "Rome."]
FAMILIES = ("gpt2", "gemma2")
"""Without BOS and with it."""
each_family = pytest.mark.parametrize("family", FAMILIES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def passages(model, count=8, seed=0, **options):
    return passage_examples(model, TEXTS, count, generator=seeded(seed), target_tokens=4, **options)


@each_family
def test_windows_are_pieces_of_their_texts(tiny, family):
    model, lead = tiny(family, KINDS[0]), int(family == "gemma2")
    windows = list(draw_windows(model, TEXTS, (5, 9), generator=seeded()))
    found = [window for window in windows if window is not None]
    assert len(found) > 4 * 7
    for window in found:
        assert torch.equal(encode(model, window.text), window.tokens)
        assert window.text in TEXTS[window.source]
    assert {len(window.tokens) - lead for window in found} == {5, 6, 7, 8, 9}
    assert sorted(window.source for window in windows[:7] if window) == sorted({w.source for w in windows[:7] if w})
    assert len({(window.source, *window.tokens.tolist()) for window in found}) > 0.9 * len(found)


def test_windows_that_begin_inside_a_character_are_left_out(tiny):
    model = tiny("gpt2", KINDS[0])
    windows = list(draw_windows(model, ["富士山東京北京" * 3], (2, 3), generator=seeded()))
    assert windows.count(None) > 0
    assert all("\ufffd" not in window.text for window in windows if window is not None)


@each_family
def test_passages_are_continued_by_the_model(tiny, family):
    model, lead = tiny(family, KINDS[0]), int(family == "gemma2")
    made = passages(model)
    assert len(made.examples) == 8
    dropped = set()
    for example in made.examples:
        tokens = encode(model, example.prompt)
        target = encode_target(model, example.target, example.prompt, example.joiner)
        assert (20 <= len(tokens) - lead <= 30, len(target)) == (True, 4)
        for place, token in enumerate(target):
            logits = model(torch.cat([tokens, target[:place]])[None])[0, -1]
            assert token in logits.topk(5).indices, "sampled among the five most likely"
        outer = encode(model, example.outer_prompt)
        assert torch.equal(outer[lead:], tokens[len(tokens) - len(outer) + lead :])
        assert torch.equal(encode_target(model, example.target, example.outer_prompt, example.joiner), target)
        dropped.add(len(tokens) - len(outer))
        assert len(tokens) - len(outer) <= (len(tokens) - lead) // 2
        assert example.prompt in TEXTS[int(example.record.removeprefix("text "))]
        assert not example.subject
    assert len(dropped) > 2


def test_passages_follow_the_generator_alone(tiny):
    model, state = tiny("gpt2", KINDS[0]), torch.get_rng_state()
    assert passages(model) == passages(model)
    assert passages(model, seed=1) != passages(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_little_text_for_passages_is_refused(tiny):
    with pytest.raises(InputError, match="9 texts gave 0 passages of 200 to 220 tokens"):
        passages(tiny("gpt2", KINDS[0]), sizes=(200, 220))
    with pytest.raises(InputError, match="give the fewest and the most"):
        passages(tiny("gpt2", KINDS[0]), sizes=(30, 20))


def test_locality_texts_are_of_long_lines_only(tiny):
    model = tiny("gpt2", KINDS[0])
    found = locality_texts(model, TEXTS, 12, generator=seeded(), more_words_than=70)
    long_ones = [text for text in TEXTS if len(text.split()) > 70]
    assert 0 < len(long_ones) < 7
    assert len(found) == 12
    assert all(24 <= len(encode(model, text)) <= 32 and any(text in line for line in long_ones) for text in found)
    with pytest.raises(InputError, match="0 texts of more than 500 words have 0 windows"):
        locality_texts(model, TEXTS, 1, generator=seeded(), more_words_than=500)


def test_samples_stand_in_for_a_corpus(tiny):
    model = tiny("gpt2", KINDS[0])
    found = [sampled_texts(model, 5, generator=seeded(seed), tokens=30, batch_size=2) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 5
    assert len(sampled_texts(model, 1, generator=seeded(), tokens=1000)) == 1, "as many as the context holds"


def test_a_prompt_that_ends_in_a_space_of_its_target_is_left_out(tiny, monkeypatch):
    refused, own = [], encode_target

    def refuse_the_first(model, target, prompt=None, joiner=None):
        refused.append(prompt)
        if len(refused) == 1:
            raise InputError("prompt ends in a space that belongs to the token")
        return own(model, target, prompt, joiner)

    monkeypatch.setattr(building, "encode_target", refuse_the_first)
    made = passages(tiny("gpt2", KINDS[0]))
    assert len(made.examples) == 8
    assert refused[0] not in [example.prompt for example in made.examples]
    assert made.left_out["the continuation is not text of its own"] >= 1
