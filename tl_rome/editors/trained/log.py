"""What a training did: kept with the editor, so that every figure of it can be traced."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Validation:
    """The network's edits on examples that it is not trained on, at one step."""

    step: int
    """Steps of Adam before it."""
    edit_loss: float
    """l_edit: negative log-likelihood of a token of the target after the outer prompt, in nats."""
    locality_loss: float
    """l_loc: KL(unedited || edited) at a position of unrelated text, in nats."""
    success: float
    """Share of the edits after which all tokens of the target are the most likely, after the outer prompt."""
    loss: float
    """What is minimised: the weighted sum of both losses."""


@dataclass(frozen=True)
class TrainingLog:
    """How a training went, and what it was of."""

    steps: int
    """Steps of Adam that were made."""
    best_step: int
    """The one whose network was kept: that of the lowest validation loss."""
    skipped: int
    """Edits that were left out since their loss or gradient was not finite."""
    ended: str
    """Why it ended, in words."""
    curve: tuple[Validation, ...]
    """Validations, in order; the first is of the untrained network."""
    data: Mapping[str, Any]
    """What it was of: numbers of examples and texts, names of records, a digest of all tokens; JSON-serialisable."""

    @property
    def best(self) -> Validation:
        """The validation of the network that was kept."""
        return next(point for point in self.curve if point.step == self.best_step)
