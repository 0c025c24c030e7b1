"""A training counts as converged if it learnt something and was done with it."""

from itertools import pairwise

import pytest

from tl_rome.editors.trained.config import TrainingConfig
from tl_rome.editors.trained.convergence import training_doubt
from tl_rome.editors.trained.log import TrainingLog, Validation


def doubt_of(*points, every=25):
    """A training with these l_edit at its validations, or pairs of those with l_loc, which is zero without."""
    pairs = [point if isinstance(point, tuple) else (point, 0.0) for point in points]
    curve = tuple(Validation(every * i, edit, other, 0.5, 0.1 * edit + other) for i, (edit, other) in enumerate(pairs))
    best = min(curve, key=lambda point: point.loss)
    log = TrainingLog(curve[-1].step, best.step, 0, "", curve, {})
    return training_doubt(log, TrainingConfig(preset="", learning_rate=1.0, patience=100))


@pytest.mark.parametrize(
    ("points", "doubt"),
    [
        ((8.0, 4.0, 1.0, 0.5, 0.4, 0.4), ""),
        ((8.0, 4.0, 0.5, 0.6, 0.7, 0.6, 0.55), ""),  # nothing better for 100 steps
        ((8.0, 7.0, 6.0, 5.0), "loss went from 0.800 to 0.500 only"),
        ((8.0, 9.0, 10.0, 11.0), "loss went from 0.800 to 0.800 only"),
        (((0.5, 0.2), (0.45, 0.01), (0.4, 0.01), (0.4, 0.01), (0.4, 0.01)), ""),  # the identity wrote, and harmed
        (((0.5, 1.0), (2.0, 0.0), (2.0, 0.0), (2.0, 0.0)), "l_edit went from 0.50 up to 2.00 nats"),  # does nothing
        ((8.0, 6.0, 4.0, 3.0, 2.0), "still fell, from 0.300 to 0.200, when 100 steps ended"),
        ((8.0,), "only"),
    ],
)
def test_doubts(points, doubt):
    found = doubt_of(*points)
    assert doubt in found
    assert bool(doubt) == bool(found)


def test_slow_learning_that_goes_on_is_not_the_end():
    points = [8.0 * 0.97**index for index in range(60)]
    assert all(later < earlier for earlier, later in pairwise(points))
    assert "still fell" in doubt_of(*points[:25])
    assert doubt_of(*points, *points[-1:] * 30) == ""
