import logging

import pytest
import torch
from support.average_example import LAYERS, average_of, made_trace, peaked

from tl_rome.errors import InputError
from tl_rome.patching.averaging.layer import suggest_layer


def suggest(average, seed=0, **options):
    return suggest_layer(average, seed=seed, **{"resamples": 400, **options})


def test_a_clear_peak_is_certain():
    found = suggest(average_of([peaked(3, seed=seed) for seed in range(6)]))
    assert (found.layer, found.low, found.high, found.n) == (3, 3, 3, 6)
    assert found.shares.tolist() == [0, 0, 0, 1, 0]
    assert found.effect == pytest.approx(0.5)
    assert found.effect_low <= found.effect <= found.effect_high
    assert str(found).startswith("layer 3 (95% interval 3-3, peaks there in 100% of draws; effect 0.500 [")


def test_prompts_that_disagree_leave_doubt():
    results = [peaked(1, height=0.5, seed=seed) for seed in range(6)]
    results += [peaked(4, height=0.5, seed=seed) for seed in range(6, 11)]
    found = suggest(average_of(results))
    assert (found.layer, found.low, found.high) == (1, 1, 4)
    assert 0.5 < found.shares[1] < 0.85
    assert found.shares[1] + found.shares[4] == pytest.approx(1)
    assert len(found.shares) == LAYERS


def test_another_role_can_be_asked_for():
    average = average_of([peaked(2, role_position=7, seed=seed) for seed in range(4)])
    assert suggest(average, role="last token").layer == 2
    results = [peaked(2, role_position=2, seed=seed) for seed in range(3)] + [made_trace(0, 2, 5, seed=9)]
    found = suggest(average_of(results), role="middle subject tokens")
    assert (found.layer, found.n) == (2, 3), "a prompt without the role does not count"


def test_no_effect_is_said(caplog):
    results = [peaked(1, height=sign * 0.5, seed=seed) for seed, sign in enumerate((1, -1, 1, -1))]
    results = [made_trace(seed=seed, scores=result.scores - 0.05) for seed, result in enumerate(results)]
    with caplog.at_level(logging.WARNING):
        suggest(average_of(results))
    assert "no effect of mlp_out at the last subject token is clear of 0" in caplog.text


def test_seeds_decide():
    average = average_of([made_trace(seed=seed) for seed in range(5)])
    first, again, other = (suggest(average, seed=seed).shares for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("change", [{"component": "attn_out"}, {"direction": "noising"}])
def test_only_restored_mlps_tell_the_layer_to_edit(change):
    average = average_of([peaked(1, seed=seed, **change) for seed in range(3)])
    with pytest.raises(InputError, match=r"the layer to edit is read from restoring 'mlp_out'"):
        suggest(average)


def test_one_prompt_is_not_enough():
    with pytest.raises(InputError, match=r"1 prompts .* say nothing about uncertainty"):
        suggest(average_of([peaked(1)]))
