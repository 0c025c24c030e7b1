"""Numbers as targets: many tokenizers give the space before them, and each digit, a token of its own."""

import math

import pytest
import torch
from support import plain
from support.families import KINDS
from support.traces import trace
from tokenizers import pre_tokenizers

from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching import LogitDifference
from tl_rome.tokens import encode_fact, encode_target

TEMPLATE, SUBJECT = "{} was built in", "Eiffel Tower"
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def digits(fresh_tiny):
    """A model whose tokenizer writes " 1889" as " ", "1", "8", "8", "9", as SmolLM2's does."""

    def get(kind):
        model = fresh_tiny("gpt2", kind)
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        return model

    return get


@each_kind
def test_all_tokens_of_a_number_are_scored(digits, family_dir, kind, caplog):
    model, hf = digits(kind), plain.load(family_dir("gpt2"))
    found = {}
    for year in ("1889", "1492"):
        fact = Fact(TEMPLATE, SUBJECT, year)
        prompt, target = encode_fact(model, fact).tokens.tolist(), encode_target(model, year, fact.prompt).tolist()
        assert len(target) == 5
        found[year] = trace(model, fact=fact)
        assert found[year].answer == f" {year}"
        assert found[year].clean_score == pytest.approx(math.exp(plain.logprob(hf, prompt, target)), rel=1e-4)
        assert torch.equal(found[year].scores, trace(model, fact=fact, whole_target=True).scores)
    assert (found["1889"].effects - found["1492"].effects).abs().max() > 0.1 * found["1889"].effects.abs().max()
    assert "whole_target=True" not in caplog.text


@each_kind
def test_the_first_token_of_a_number_is_scored_on_request_with_a_warning(digits, kind, caplog):
    model = digits(kind)
    one, other = (trace(model, fact=Fact(TEMPLATE, SUBJECT, year), whole_target=False) for year in ("1889", "1492"))
    assert one.answer == " "
    assert torch.equal(one.scores, other.scores)
    assert caplog.text.count("the answer's first token is ' ', as for many others; give whole_target=True") == 2


@each_kind
def test_words_of_several_tokens_are_scored_by_their_first(tiny, kind):
    model, fact = tiny("gpt2", kind), Fact(TEMPLATE, SUBJECT, "Rome Paris")
    assert torch.equal(trace(model, fact=fact).scores, trace(model, fact=fact, whole_target=False).scores)


def test_a_logit_difference_of_numbers_that_begin_alike_is_refused(digits):
    model = digits(KINDS[0])
    with pytest.raises(InputError, match="'1889' and '1492' both begin with the token ' '"):
        LogitDifference.between(model, "1889", "1492")
