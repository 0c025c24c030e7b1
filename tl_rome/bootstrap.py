"""Percentile bootstrap over prompts: how far a mean would move if other prompts of the same kind were drawn."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_rome.errors import InputError


def resampled_means(
    values: Float[Tensor, "prompt layer role"],
    present: Bool[Tensor, "prompt role"],
    *,
    resamples: int,
    generator: torch.Generator,
) -> Float[Tensor, "resample layer role"]:
    """Means over prompts drawn with replacement, as many as there are.

    Args:
        values: One value per prompt.
        present: Which prompts have the role; the others do not count in its mean.
        resamples: How often to draw.
        generator: Source of the draws.

    Returns:
        Means in float64, NaN where no drawn prompt has the role.

    Raises:
        InputError: If `resamples` is below 1, or there are no prompts.
    """
    prompts = len(values)
    if resamples < 1 or not prompts:
        raise InputError(f"cannot resample {prompts} prompts {resamples} times; give at least one of each")
    drawn = torch.randint(prompts, (resamples, prompts), generator=generator)
    counts = torch.zeros(resamples, prompts, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    weights = present.double()
    sums = torch.einsum("rp,plo,po->rlo", counts, values.double(), weights)
    return sums / (counts @ weights)[:, None, :]


def interval(
    resampled: Float[Tensor, " resample *rest"], confidence: float
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Lower and upper end of the percentile interval; draws that are NaN do not count.

    Raises:
        InputError: If the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; use a number between 0 and 1, such as 0.95")
    tail = (1 - confidence) / 2
    return resampled.nanquantile(tail, dim=0), resampled.nanquantile(1 - tail, dim=0)
