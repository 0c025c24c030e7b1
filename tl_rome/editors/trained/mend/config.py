"""Settings of MEND: what was released, and what is right for small hardware."""

from dataclasses import dataclass

from tl_rome.arguments import Count, Finite, NotNegative, Positive
from tl_rome.editors.trained.config import TrainingConfig

RELEASED_RANK = 1920
"""Of the released networks, to which learning rates refer."""


@dataclass(frozen=True, kw_only=True)
class MendConfig(TrainingConfig):
    """Settings of MEND.

    Raises:
        InputError: If a number is out of its range.
    """

    learning_rate: Positive = 1.3e-6
    """Step size of Adam on networks of rank 1920; smaller ranks learn less at the same one, since ||V z|| is about
    sqrt(rank D), and get it times 1920 / rank."""
    rates_learning_rate: Positive = 2e-5
    """Step size of Adam on the rates of the matrices."""
    start_rate: Finite = -1e-4
    """What each rate begins with; released: +1e-4, with which an edit lowers its target's probability at first."""
    rank: Count = 256
    """Rank of each low-rank layer, at most d_in + d_out."""
    sd_floor: NotNegative = 1e-3
    """Least standard deviation of a coordinate, as a share of the median; released: 0."""

    @property
    def network_learning_rate(self) -> float:
        """The step size for this rank."""
        return self.learning_rate * RELEASED_RANK / self.rank


MEND_CF = MendConfig(preset="mend_cf")
"""For facts: the edit is a rewriting prompt with its new object."""

MEND = MendConfig(preset="mend")
"""For text: the edit is a passage with the model's own continuation."""

MEND_RELEASED = MendConfig(
    preset="mend_released",
    learning_rate=1e-6,
    rates_learning_rate=1e-6,
    start_rate=1e-4,
    rank=RELEASED_RANK,
    sd_floor=0.0,
    max_steps=100_000,
    validate_every=500,
    patience=2_000,
)
"""The released settings, for days of training: rates move by 1e-6 a step there, since a second optimiser is inert."""
