"""The bootstrap over prompts: its means by hand, its spread by theory, its coverage by simulation."""

import pytest
import torch

from tl_rome.bootstrap import interval, resampled_means
from tl_rome.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_means_of_the_drawn_prompts_that_have_the_role():
    values = torch.randn(6, 3, 2, generator=generator(), dtype=torch.float64)
    present = torch.tensor([[True, True]] * 4 + [[True, False]] * 2)
    found = resampled_means(values, present, resamples=20, generator=generator(1))
    drawn = torch.randint(6, (20, 6), generator=generator(1))
    for means, rows in zip(found, drawn.tolist(), strict=True):
        torch.testing.assert_close(means[:, 0], values[rows][:, :, 0].mean(0))
        having = [row for row in rows if row < 4]
        torch.testing.assert_close(means[:, 1], values[having][:, :, 1].mean(0))


def test_prompts_without_the_role_do_not_matter_whatever_they_hold():
    values, present = torch.rand(5, 1, 1, generator=generator()), torch.tensor([[True]] * 3 + [[False]] * 2)
    other = values.clone()
    other[3:] = 100.0
    first, second = (resampled_means(v, present, resamples=50, generator=generator(2)) for v in (values, other))
    assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_a_role_that_no_prompt_has_has_no_interval():
    draws = resampled_means(
        torch.zeros(3, 2, 1), torch.zeros(3, 1, dtype=torch.bool), resamples=9, generator=generator()
    )
    assert draws.isnan().all()
    assert all(end.isnan().all() for end in interval(draws, 0.95))


def test_the_interval_covers_as_often_as_it_says():
    # 95 % percentile intervals of 60 normal values fall a little short; 400 of them cover 93.7 +- 1.2 % in theory.
    values, present = torch.randn(400, 60, 1, 1, generator=generator(), dtype=torch.float64), torch.ones(60, 1) > 0
    ends = [interval(resampled_means(v, present, resamples=300, generator=generator(3)), 0.95) for v in values]
    covered = sum(float(low <= 0 <= high) for low, high in ends) / 400
    assert 0.89 < covered < 0.98


def test_seeds_decide_the_draws_and_global_random_state_is_left_alone():
    values, present, state = torch.rand(5, 2, 1), torch.ones(5, 1) > 0, torch.get_rng_state()
    first, again, other = (
        resampled_means(values, present, resamples=5, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_impossible_requests_are_refused():
    values, present = torch.rand(2, 1, 1), torch.ones(2, 1) > 0
    with pytest.raises(InputError, match="cannot resample 2 prompts 0 times"):
        resampled_means(values, present, resamples=0, generator=generator())
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(InputError, match="use a number between 0 and 1"):
            interval(torch.rand(3, 1), confidence)
