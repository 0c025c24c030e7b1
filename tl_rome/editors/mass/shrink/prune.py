"""PRUNE (arXiv 2405.16821): the singular values of all edits together are held near those of the unedited weight.

With sigma the largest singular value of the unedited W0 and U s V^T the sum of all changes,

    s' = log_b s - log_b sigma + sigma  where s > sigma,   s elsewhere;   edited weight W0 + U s' V^T

once, after the last edit. The paper's code (mjy1111/PRUNE, 046c2a6) has b of 1.2, 1.5 and 2, or (s + sigma) / 2 in
place of the logarithm; AlphaEdit's (f5248d3) has the natural logarithm.

AlphaEdit's code, and what took it over, adds U s' V^T to the weight that is *already edited* instead of to W0, so that
all changes are applied about twice. That is a bug, not a variant: what is returned here belongs onto W0. Published
rows of PRUNE were made with it, so nothing can be compared with them.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Range
from tl_rome.running.arithmetic import in_float64

PruneBase = Annotated[float, Range(above=1)] | Literal["linear"]
"""Of the logarithm, or the mean of a singular value and sigma in its place."""


def prune(
    weight: Float[Tensor, "d_in d_out"],
    change: Float[Tensor, "d_in d_out"],
    base: PruneBase = math.e,
) -> Float[Tensor, "d_in d_out"]:
    """The change with those of its singular values lowered that exceed the weight's largest.

    With a logarithm and sigma ln b < 1 values a little above sigma are raised: the formula's own, kept as it is.

    Args:
        weight: W0, the matrix before the first of the edits.
        change: Sum of what all of them add to it; left as it is.
        base: b of the logarithm, above 1; or "linear" for (s + sigma) / 2.

    Returns:
        What is to be added to W0, in float64, on the change's device where that has it: the change itself where no
        singular value exceeds sigma.
    """
    weight, change = in_float64(weight), in_float64(change)
    sigma = torch.linalg.matrix_norm(weight, ord=2).to(change.device)
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    if not bool((values > sigma).any()):
        return change.clone()
    lowered = (values + sigma) / 2 if base == "linear" else (values / sigma).log() / math.log(base) + sigma
    return left * torch.where(values > sigma, lowered, values) @ right
