"""Whether a training came to an end of learning, by its validation curve.

It did if both hold for the network that was kept, the one of the lowest validation loss:

    it learnt     what is minimised, c_edit l_edit + l_loc, is at most half of what it was before the first step, and
                  l_edit is no higher: MEND begins as the gradient itself, which may write facts and harm all else
    it was done   no validation was better for `patience` steps; or the last quarter of the steps brought less than a
                  twentieth of what all of them brought

A table marks an editor that did not: its row says what this training came to, not what the method can do.
"""

from tl_rome.editors.trained.config import TrainingConfig
from tl_rome.editors.trained.log import TrainingLog

_LEARNT = 0.5
_LAST, _GAIN = 0.25, 0.05


def training_doubt(log: TrainingLog, config: TrainingConfig) -> str:
    """Why a training may not count as converged, in words; empty if it does.

    Args:
        log: Of any trained editor.
        config: Its settings.
    """
    first, best = log.curve[0], log.best
    if not best.edit_loss <= first.edit_loss:
        return f"its validation l_edit went from {first.edit_loss:.2f} up to {best.edit_loss:.2f} nats"
    if not best.loss <= _LEARNT * first.loss:
        return f"its validation loss went from {first.loss:.3f} to {best.loss:.3f} only"
    if log.steps - best.step >= config.patience:
        return ""
    earlier = min(point.loss for point in log.curve if point.step <= (1 - _LAST) * log.steps)
    if earlier - best.loss > _GAIN * (first.loss - best.loss):
        return f"its validation loss still fell, from {earlier:.3f} to {best.loss:.3f}, when {log.steps} steps ended"
    return ""
