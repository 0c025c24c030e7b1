"""Settings of KE: what was released, and what is right for small hardware."""

from dataclasses import dataclass
from typing import Literal

from tl_rome.arguments import Count, Positive
from tl_rome.editors.trained.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class KeConfig(TrainingConfig):
    """Settings of KE.

    Raises:
        InputError: If a number is out of its range.
    """

    learning_rate: Positive = 1e-4
    """Step size of Adam on everything. KE begins with next to no change at all, so that small ones take long."""
    hidden: Count = 512
    """Units of the LSTM in each direction, and of each head."""
    condition: Count = 768
    """Width of the condition c."""
    max_scale: Positive = 1.0
    """What sigmoid(e) is multiplied with: bounds the change."""
    softmax_over: Literal["d_in", "d_out"] = "d_in"
    """Side of each matrix on which the gates are softmaxes; released: d_in for GPT-2, d_out for `Linear` models."""
    own_embedding: bool = False
    """Whether the LSTM reads a copy of the model's token embeddings that is trained too, as released, or the model's
    own, which would be half of the parameters."""


KE_CF = KeConfig(preset="ke_cf")
"""For facts: the edit is a rewriting prompt with its new object."""

KE = KeConfig(preset="ke")
"""For text: the edit is a passage with the model's own continuation."""

KE_RELEASED = KeConfig(
    preset="ke_released",
    learning_rate=1e-5,
    own_embedding=True,
    max_steps=100_000,
    validate_every=500,
    patience=2_000,
)
"""The released settings, for days of training."""
