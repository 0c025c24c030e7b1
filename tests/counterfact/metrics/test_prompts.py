"""Metrics of scored prompts against values worked out by hand."""

import math
from math import exp

import pytest
import torch
from support.results import scores

from tl_rome.counterfact.metrics.prompts import (
    accuracy,
    neighborhood_magnitude,
    neighborhood_success,
    next_token_kl,
    rewrite_magnitude,
    rewrite_success,
)
from tl_rome.counterfact.results import PromptScores
from tl_rome.errors import InputError

# o* wins, loses, ties.
MIXED = scores((1.0, 2.0), (3.0, 0.5), (1.5, 1.5), (0.1, 4.0))
# o* has 4 tokens of 1 nat, o^c 2 tokens of 1.5 nats: o^c is likelier as a whole, o* per token.
LENGTHS = PromptScores((-4.0,), (-3.0,), (4,), (2,))


def test_successes_are_strict_shares():
    assert rewrite_success(MIXED) == 2 / 4
    assert neighborhood_success(MIXED) == 1 / 4


def test_magnitudes_are_mean_differences_of_probability():
    expected = (exp(-1) - exp(-2) + exp(-3) - exp(-0.5) + 0 + exp(-0.1) - exp(-4)) / 4
    assert rewrite_magnitude(MIXED) == pytest.approx(expected, rel=1e-12)
    assert neighborhood_magnitude(MIXED) == pytest.approx(-expected, rel=1e-12)


@pytest.mark.parametrize(
    ("conventions", "success", "magnitude"),
    [("released", 1.0, exp(-1) - exp(-1.5)), ("neurips", 1.0, exp(-1) - exp(-1.5)), ("draft", 0.0, exp(-4) - exp(-3))],
)
def test_the_draft_compares_whole_targets_and_the_release_token_means(conventions, success, magnitude):
    assert rewrite_success(LENGTHS, conventions) == success
    assert neighborhood_success(LENGTHS, conventions) == 1 - success
    assert rewrite_magnitude(LENGTHS, conventions) == pytest.approx(magnitude, rel=1e-12)


def test_nothing_measured_is_nan():
    empty = PromptScores((), (), (), ())
    assert math.isnan(rewrite_success(empty))
    assert math.isnan(rewrite_magnitude(empty))
    assert math.isnan(accuracy(None))


def test_accuracy():
    assert accuracy((True, False, False, True, True)) == 3 / 5


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="differ in number"):
        PromptScores((-1.0, -2.0), (-1.0,), (1, 1), (1,))


def test_kl_is_in_nats_and_from_before_to_after():
    before, after = (torch.tensor(p).log()[None] for p in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    assert next_token_kl(before, after).tolist() == pytest.approx([0.5 * math.log(2) - 0.25 * math.log(2)])
    skewed = torch.tensor([[0.9, 0.05, 0.05]]).log()
    there, back = next_token_kl(before, skewed).item(), next_token_kl(skewed, before).item()
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.25 / 0.05)
    assert there == pytest.approx(by_hand, rel=1e-6)
    assert abs(there - back) > 0.1


def test_kl_does_not_see_a_constant_added_to_logits_and_refuses_what_is_not_finite():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert next_token_kl(logits, logits + 7).abs().max() < 1e-6
    with pytest.raises(InputError, match="not finite"):
        next_token_kl(logits, logits * math.inf)
