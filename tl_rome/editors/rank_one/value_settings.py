"""What the optimisation of a value depends on, beside the model, the facts and the contexts; the same for all editors.

Editors whose configurations have equal `value_settings` can share values, see `SharedValues`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from tl_rome.arguments import Count, Finite, NotNegative, Positive, Whole

ValueSite = Literal["w_out", "resid_post", "w_out+w_o"]
"""Whose norm is the measure of delta, and what an editor stores: W_out's output, the block's, or W_out's with a second
offset on the output of attention that is thrown away (PMET)."""


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """Settings of the optimisation of v* or z; see `RomeConfig` and `MassConfig` for those that have the same name."""

    learning_rate: Positive
    max_evaluations: Count
    stop_loss: Finite
    kl_factor: NotNegative
    kl_template: str
    norm_penalty: NotNegative
    clamp: Positive | None
    optimiser: Literal["adam", "gradient_descent"] = "adam"
    weight_decay: NotNegative = 0.0
    extra_evaluations: Whole = 0
    sum_token_nll: bool = False
    value_site: ValueSite = "w_out"
    nll_factor: Positive = 1.0
    relax_when_predicted: bool = False
    early_stop: bool = False

    @property
    def needs_predictions(self) -> bool:
        """Whether it has to be known if a target is the most likely text in every context."""
        return self.relax_when_predicted or self.early_stop


@runtime_checkable
class HasValueSettings(Protocol):
    """A configuration of an editor that optimises values."""

    @property
    def value_settings(self) -> ValueSettings:
        """What its values depend on."""
        ...
