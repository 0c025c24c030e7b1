"""Settings of training that MEND and KE share."""

from dataclasses import dataclass

from tl_rome.arguments import Count, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a trained editor learns; losses and their weights are those of MEND (Mitchell et al. 2022).

    Raises:
        InputError: If a number is out of its range.
    """

    preset: str
    """Name of the method and its data; written into the editor and every receipt."""
    learning_rate: Positive
    """Step size of Adam on the networks."""
    batch_size: Count = 10
    """Edits whose gradients are averaged for a step, each with one locality text. Released: 10, one after the other."""
    max_steps: Count = 300
    """Steps of Adam at most. Released: 100,000."""
    validate_every: Count = 25
    """Steps between validations, after which a checkpoint is written; one comes before the first step."""
    patience: Count = 100
    """Training ends after so many steps without a better validation; the best is what is kept. Released: 2,000."""
    edit_weight: NotNegative = 0.1
    """Weight of l_edit in the loss."""
    locality_weight: NotNegative = 1.0
    """Weight of l_loc in the loss."""
    locality_positions: Count | None = None
    """Positions of each locality text that are compared, drawn anew at each step; None is all. Fewer are cheaper, and
    the gradient stays right on average."""
    clip: Positive = 100.0
    """Largest norm of the gradient of all parameters together."""
    warm_up: Count = 32
    """Edits that the running statistics have seen before the first step, so that validation can begin there."""
