"""Averages over prompts: by hand, by role, and back from disk."""

from dataclasses import fields, replace

import pytest
import torch
from support.average_example import LAYERS, average_of, made_trace

from tl_rome.errors import InputError, StorageError
from tl_rome.patching.averaging.average import AverageTrace, average_traces
from tl_rome.patching.averaging.roles import ROLES
from tl_rome.storage import files as storage

# With and without middle tokens, a one-token subject, a single following token, subjects at the start.
RESULTS = [
    made_trace(1, 4, 8, seed=0),
    made_trace(0, 2, 6, seed=1),
    made_trace(2, 3, 7, seed=2),
    made_trace(0, 3, 4, seed=3),
]


def test_effects_are_means_over_prompts_that_have_the_role():
    average = average_of(RESULTS)
    effects = [result.effects for result in RESULTS]
    assert average.n == 4
    assert average.counts == (4, 2, 4, 4, 3, 4)
    last = torch.stack([e[:, r.subject.last] for e, r in zip(effects, RESULTS, strict=True)]).mean(0)
    torch.testing.assert_close(average.effects[:, ROLES.index("last subject token")], last)
    middle = torch.stack([effects[0][:, 2], effects[3][:, 1]]).mean(0)
    torch.testing.assert_close(average.effects[:, ROLES.index("middle subject tokens")], middle)
    further = torch.stack([effects[0][:, 5:7].mean(1), effects[1][:, 3:5].mean(1), effects[2][:, 4:6].mean(1)])
    torch.testing.assert_close(average.effects[:, ROLES.index("further tokens")], further.mean(0))


def test_a_prompt_counts_once_however_many_middle_tokens_it_has():
    long, short = made_trace(0, 12, 14, seed=0), made_trace(0, 3, 5, seed=1)
    column = average_of([long, short]).effects[:, ROLES.index("middle subject tokens")]
    torch.testing.assert_close(column, (long.effects[:, 1:11].mean(1) + short.effects[:, 1]) / 2)


def test_the_averages_that_the_paper_quotes():
    average = average_of(RESULTS)
    assert average.clean_score == pytest.approx(0.815)
    assert average.corrupted_score == pytest.approx(0.1)
    assert average.mean_maximum() == pytest.approx(sum(r.scores.max().item() for r in RESULTS) / 4)
    at_last = [r.scores[:, r.subject.last].max().item() for r in RESULTS]
    assert average.mean_maximum("last subject token") == pytest.approx(sum(at_last) / 4)
    peak = average.peak("last subject token")
    means = torch.stack([r.scores[:, r.subject.last] for r in RESULTS]).mean(0)
    assert (peak.layer, peak.score) == (int(means.argmax()), pytest.approx(means.max().item()))
    assert peak.effect == pytest.approx(peak.score - 0.1)
    assert peak.low < peak.effect < peak.high
    overall = average.peak()
    assert overall.effect == pytest.approx(average.effects.max().item())
    assert overall.role == ROLES[int(average.effects.max(0).values.argmax())]


def test_scores_of_a_role_belong_to_the_prompts_that_have_it():
    # Only the first prompt has middle tokens, and it alone starts from 0.3.
    results = [made_trace(0, 3, 6, corrupted_score=0.3), made_trace(0, 2, 6, seed=1)]
    average = average_of(results)
    assert average.peak("middle subject tokens").score == pytest.approx(results[0].scores[:, 1].max().item())
    assert average.mean_maximum("middle subject tokens") == pytest.approx(results[0].scores[:, 1].max().item())


def test_when_noising_the_strongest_is_the_lowest():
    results = [replace(result, direction="noising") for result in RESULTS]
    average = average_of(results)
    torch.testing.assert_close(average.effects, average_of(RESULTS).effects + 0.1 - 0.815, atol=0.011, rtol=0)
    assert average.mean_maximum() == pytest.approx(sum(r.scores.min().item() for r in results) / 4)
    at_last = [r.scores[:, r.subject.last].min().item() for r in results]
    assert average.mean_maximum("last subject token") == pytest.approx(sum(at_last) / 4)
    means = torch.stack([r.scores[:, r.subject.last] for r in results]).mean(0)
    peak = average.peak("last subject token")
    assert (peak.layer, peak.score) == (int(means.argmin()), pytest.approx(means.min().item()))


def test_a_role_that_no_prompt_has_is_nan_and_cannot_peak(tmp_path):
    average = average_of([made_trace(0, 2, 5, seed=seed) for seed in range(3)])
    assert average.effects[:, 1].isnan().all()
    assert average.low[:, 1].isnan().all()
    assert average.effects[:, [0, 2, 3, 4, 5]].isfinite().all()
    for ask in (average.peak, average.mean_maximum):
        with pytest.raises(InputError, match="none of the 3 prompts has a role 'middle subject tokens'"):
            ask("middle subject tokens")
    assert average.peak().role != "middle subject tokens"
    found = AverageTrace.load(average.save(tmp_path / "average.safetensors"))
    torch.testing.assert_close(found.low, average.low, equal_nan=True, rtol=0, atol=0)


def test_intervals_hold_the_mean_and_narrow_with_more_prompts():
    few, many = (average_of([made_trace(seed=seed) for seed in range(n)]) for n in (5, 80))
    for average in (few, many):
        assert average.low.shape == average.high.shape == (LAYERS, len(ROLES))
        assert (average.low <= average.effects).all()
        assert (average.effects <= average.high).all()
    assert (many.high - many.low).mean() < 0.5 * (few.high - few.low).mean()
    wide = average_of([made_trace(seed=seed) for seed in range(5)], confidence=0.99)
    assert (wide.high - wide.low).mean() > (few.high - few.low).mean()


def test_the_seed_decides_the_intervals():
    first, again, other = (average_of(RESULTS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.low, again.low)
    assert not torch.equal(first.low, other.low)
    assert torch.equal(first.effects, other.effects)


def test_round_trip(tmp_path):
    average = average_of(RESULTS)
    found = AverageTrace.load(average.save(tmp_path / "average.safetensors"))
    for name in (field.name for field in fields(AverageTrace)):
        value = getattr(average, name)
        assert type(getattr(found, name)) is type(value)
        same = torch.equal(getattr(found, name), value) if isinstance(value, torch.Tensor) else None
        assert getattr(found, name) == value if same is None else same
    assert found.prompts == ("prompt 0", "prompt 1", "prompt 2", "prompt 3")


@pytest.mark.parametrize("missing", ["curves", "present", "low", "component", "prompts"])
def test_a_file_that_lacks_a_part_is_damaged(tmp_path, missing):
    path = average_of(RESULTS).save(tmp_path / "average.safetensors")
    tensors, header = ({k: v for k, v in p.items() if k != missing} for p in storage.load(path, "average trace"))
    storage.save(path, "average trace", tensors, header)
    with pytest.raises(StorageError, match=f"lacks part of an average trace .*{missing}"):
        AverageTrace.load(path)


@pytest.mark.parametrize(
    "change", [{"component": "attn_out"}, {"window": 1}, {"corruption": "other"}, {"model": "x"}, {"metric": "logprob"}]
)
def test_traces_made_in_different_ways_are_not_averaged(change):
    with pytest.raises(InputError, match=f"traces differ in {next(iter(change))}: .* and "):
        average_of([*RESULTS, replace(RESULTS[0], **change)])


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(InputError, match="no traces to average"):
        average_of([])
    split = replace(RESULTS[0], scores=RESULTS[0].scores[..., None], units=("0",))
    with pytest.raises(InputError, match=r"third axis of units; average `result\.of_unit"):
        average_of([split])
    with pytest.raises(InputError, match="confidence is 95"):
        average_traces(RESULTS, confidence=95.0)
