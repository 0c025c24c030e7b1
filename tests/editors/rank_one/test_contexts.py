import logging
from dataclasses import replace

import pytest
import torch
from support.edits import covariance
from support.families import KINDS

from tl_rome.editors import DRAFT, RELEASED, Rome, sample_contexts
from tl_rome.editors.rank_one.contexts import are_junk, choose_contexts
from tl_rome.editors.rank_one.presets import OPENINGS
from tl_rome.errors import InputError
from tl_rome.generation import sample_tokens

KIND = KINDS[0]
JUNK = ("", "-_10. ", "-in-the-past. ", ", the first of the. ", "\nThe most. ")
PROSE = ("", "The first of the. ", "Ich weiß nicht, was. ", "東京 は 日本の. ", '\n\n"I was there. ', "-_10. ")
PARAGRAPHS = ("", *(f"The {i}. " for i in range(20)))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_contexts_follow_the_seed_and_the_recipe(tiny, monkeypatch):
    model, lengths = tiny("llama", KIND), []

    def spy(model, tokens, new_tokens, **options):
        lengths.append((tokens.shape, new_tokens, options["top_k"]))
        return sample_tokens(model, tokens, new_tokens, **options)

    monkeypatch.setattr("tl_rome.editors.rank_one.contexts.sample_tokens", spy)
    state = torch.random.get_rng_state()
    first, again, other = (sample_contexts(model, RELEASED, generator=draw(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == again != other
    assert first[0] == ""
    assert len(first) == 21
    assert all(context.endswith(". ") for context in first[1:])
    assert lengths[:2] == [((10, 1), 4, 5), ((10, 1), 9, 5)]  # the start token counts in the length


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_openings_take_turns_and_count_in_the_length(fresh_tiny, monkeypatch, prepend_bos):
    model, starts = fresh_tiny("llama", KIND, prepend_bos=prepend_bos), []

    def spy(model, tokens, new_tokens, **options):
        starts.append((model.tokenizer.decode(tokens[0, prepend_bos:]), new_tokens))
        return sample_tokens(model, tokens, new_tokens, **options)

    monkeypatch.setattr("tl_rome.editors.rank_one.contexts.sample_tokens", spy)
    config = replace(RELEASED, context_openings=("The", "People"), context_lengths=((6, 4),))
    found = sample_contexts(model, config, generator=draw())
    assert [text.startswith(word) for text, word in zip(found[1:], ("The", "People") * 2, strict=True)] == [True] * 4
    assert found[1] != found[3]
    words = [len(model.tokenizer.encode(word, add_special_tokens=False)) for word in ("The", "People")]
    assert starts == [("\n\nThe", 6 - words[0]), ("\n\nPeople", 6 - words[1])] * 2
    assert config.contexts_choice == "sampled from openings The, People, top-k 5"


def test_junk_is_distinguished_from_prose():
    assert are_junk(JUNK)
    assert not are_junk(PROSE)
    assert not are_junk(("",))


def test_openings_are_used_where_the_start_token_gives_junk(tiny, monkeypatch, caplog):
    model, answers = tiny("llama", KIND), [JUNK, PARAGRAPHS]
    configs = []

    def sample(model, config, generator):
        configs.append(config)
        return answers[len(configs) - 1]

    monkeypatch.setattr("tl_rome.editors.rank_one.contexts._sampled", sample)
    with caplog.at_level(logging.INFO):
        found, choice = choose_contexts(model, RELEASED, generator=draw())
    assert found == ("", *(f"The {i}. " for i in (0, 3, 6, 10, 13, 16)))
    assert choice.startswith("7 of 21, ")
    assert [config.context_openings for config in configs] == [(), OPENINGS]
    assert choice.endswith("the start token gives junk")
    assert "'-_10. '" in caplog.text
    answers[:] = [PROSE]
    configs.clear()
    assert choose_contexts(model, RELEASED, generator=draw()) == (PROSE, RELEASED.contexts_choice)


def test_a_preset_can_be_kept_to_and_one_without_contexts_has_none(tiny):
    model = tiny("llama", KIND)
    kept = Rome.prepare(model, covariance=covariance(model), contexts="recipe", seed=3)
    assert kept.contexts == sample_contexts(model, RELEASED, generator=draw(3))
    assert kept.contexts_choice == RELEASED.contexts_choice
    assert Rome.prepare(model, covariance=covariance(model), config=DRAFT).contexts == ("",)
    with pytest.raises(InputError, match="first context must be ''"):
        Rome.prepare(model, covariance=covariance(model), contexts=["He said. "])
