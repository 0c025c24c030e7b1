"""Sampling with a cache: greedy equals an argmax loop without one, draws come from the given generator."""

import math

import pytest
import torch
from support.families import FAMILIES, KINDS

from tl_rome.errors import InputError
from tl_rome.generation import continue_texts, generate_to_length, sample_tokens
from tl_rome.tokens import encode

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
PROMPTS = ("The Eiffel Tower is located in", "Rome", "Paris", "The mother tongue of Łucja is")
TOKENS = torch.randint(2, 500, (2, 60), generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def greedy_without_cache(model, tokens, new_tokens):
    for _ in range(new_tokens):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


@each_kind
@each_family
def test_greedy_equals_a_loop_without_cache(tiny, family, kind):
    model = tiny(family, kind)  # 60 + 8 tokens reach beyond the sliding windows of 64
    found = sample_tokens(model, TOKENS, 8, generator=seeded(), top_k=1)
    assert torch.equal(found, greedy_without_cache(model, TOKENS, 8))
    assert len(found[:, 60:].unique()) > 1, "a model that repeats itself shows little"


@each_kind
@pytest.mark.parametrize("top_k", [5, None])
def test_seeds_decide_the_text_and_global_random_state_is_left_alone(tiny, kind, top_k):
    model, state = tiny("gpt2", kind), torch.get_rng_state()
    first, again, other = (sample_tokens(model, TOKENS, 20, generator=seeded(s), top_k=top_k) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(len(KINDS) < 2, reason="this TransformerLens has one class")
@each_family
def test_both_classes_write_the_same_text(tiny, family):
    hooked, bridge = (sample_tokens(tiny(family, kind), TOKENS, 10, generator=seeded(3)) for kind in KINDS)
    assert torch.equal(hooked, bridge)


@each_kind
@pytest.mark.parametrize("top_k", [3, None])
def test_draws_follow_the_models_distribution(tiny, kind, top_k):
    model, rows = tiny("gpt2", kind), 4000
    probs = model(TOKENS[:1, :3])[0, -1].softmax(dim=-1)
    if top_k is not None:
        probs = torch.where(probs >= probs.topk(top_k).values[-1], probs, 0)
        probs = probs / probs.sum()
    drawn = sample_tokens(model, TOKENS[:1, :3].expand(rows, -1), 1, generator=seeded(), top_k=top_k)[:, -1]
    found = drawn.bincount(minlength=len(probs)) / rows
    expected_error = (2 / math.pi * probs * (1 - probs) / rows).sqrt()
    assert (found - probs).abs().sum() < 3 * expected_error.sum()
    assert not found[probs == 0].any()


@each_kind
@pytest.mark.parametrize("top_k", [5, None])
@pytest.mark.parametrize("alone", [True, False], ids=["each", "shared"])
def test_draws_are_those_of_multinomial_on_whole_logits(tiny, kind, top_k, alone):
    model, tokens = tiny("gpt2", kind), TOKENS[:, :7]
    generators = [seeded(row) for row in (4, 5)] if alone else seeded(4)
    found = sample_tokens(model, tokens, 12, generator=generators, top_k=top_k)
    generators = [seeded(row) for row in (4, 5)] if alone else seeded(4)
    for _ in range(12):
        logits = model(tokens)[:, -1]
        kept, ids = (logits, torch.arange(logits.shape[1]).expand_as(logits)) if top_k is None else logits.topk(top_k)
        probs = kept.softmax(-1)
        if alone:
            pairs = zip(probs, generators, strict=True)
            choice = torch.stack([torch.multinomial(each, 1, generator=own) for each, own in pairs])
        else:
            choice = torch.multinomial(probs, 1, generator=generators)
        tokens = torch.cat([tokens, ids.gather(1, choice)], dim=1)
    assert torch.equal(found, tokens)


@each_kind
def test_texts_are_continued_in_order_and_as_if_alone(tiny, kind):
    model = tiny("llama", kind)
    together = continue_texts(model, PROMPTS, 6, generator=seeded(), top_k=1)
    alone = [continue_texts(model, [prompt], 6, generator=seeded(), top_k=1)[0] for prompt in PROMPTS]
    assert together == alone
    expected = greedy_without_cache(model, encode(model, PROMPTS[0])[None], 6)[0, -6:]
    assert together[0] == model.tokenizer.decode(expected)
    assert len(set(together)) == len(PROMPTS)


@each_kind
@each_family
def test_rows_of_any_length_are_filled_up_as_if_alone(tiny, family, kind):
    model = tiny(family, kind)
    prompts = [TOKENS[0, :n] for n in (3, 58, 1, 70, 20)]
    draws = [seeded(row) for row in range(5)]
    together = generate_to_length(model, prompts, 64, generator=draws)
    for row, prompt in enumerate(prompts):
        alone = sample_tokens(model, prompt[None, :64], 64 - min(64, len(prompt)), generator=seeded(row))
        assert torch.equal(together[row], alone[0])


def test_long_prompts_are_run_in_parts(tiny, monkeypatch):
    model = tiny("gpt2", KINDS[0])
    whole = generate_to_length(model, list(TOKENS), 64, generator=seeded())
    monkeypatch.setattr("tl_rome.generation._PREFILL", 14)
    assert torch.equal(generate_to_length(model, list(TOKENS), 64, generator=seeded()), whole)


@each_kind
def test_bos_is_part_of_the_run_but_not_of_the_text(tiny, kind):
    model = tiny("gemma2", kind)
    (text,) = continue_texts(model, ["Rome is"], 4, generator=seeded(), top_k=1)
    tokens = torch.tensor(
        [[model.tokenizer.bos_token_id, *model.tokenizer("Rome is", add_special_tokens=False).input_ids]]
    )
    assert text == model.tokenizer.decode(greedy_without_cache(model, tokens, 4)[0, -4:])


@each_kind
def test_nothing_to_do_is_done(tiny, kind):
    model = tiny("gpt2", kind)
    assert continue_texts(model, [], 5, generator=seeded()) == []
    assert continue_texts(model, ["Rome is"], 0, generator=seeded()) == [""]


@each_kind
def test_the_context_can_be_filled_but_not_exceeded(tiny, kind):
    model = tiny("gpt2", kind)
    assert sample_tokens(model, TOKENS, 68, generator=seeded()).shape == (2, model.cfg.n_ctx)
    with pytest.raises(InputError, match=r"60 \+ 69 tokens exceed the model's context of 128"):
        sample_tokens(model, TOKENS, 69, generator=seeded())


@each_kind
@pytest.mark.parametrize("top_k", [0, -1, 10_000])
def test_an_impossible_top_k_is_refused(tiny, kind, top_k):
    with pytest.raises(InputError, match=f"top_k is {top_k}; use 1 to "):
        sample_tokens(tiny("gpt2", kind), TOKENS, 1, generator=seeded(), top_k=top_k)


@each_kind
def test_progress_is_shown_only_when_asked_for(tiny, kind, capsys):
    model = tiny("gpt2", kind)
    capsys.readouterr()  # making the model may have drawn bars
    sample_tokens(model, TOKENS, 2, generator=seeded())
    assert capsys.readouterr() == ("", "")
    sample_tokens(model, TOKENS, 2, generator=seeded(), progress=True)
    assert "sample" in capsys.readouterr().err
