"""RECT (arXiv 2401.04700): of a finished change, only the entries that are large beside the weight are kept.

An entry counts by |change / weight|; the largest share stays, the rest becomes 0. This is done to the change of each
layer after all layers are written, so residuals inside the loop are those of the dense writes.

Sources keep different shares. The paper's code (JasonForJoy/Model-Editing-Hurt, 8f8d4dc) says 20%, but its only uses
are commented out and its helper returns nothing, so it never ran as published. The one behind all published tables is
AlphaEdit's (f5248d3): |change / (weight + 1e-8)|, and everything not below the int(0.6 N)-th smallest, which is one
entry more than 40%.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_rome.arguments import Share
from tl_rome.running.arithmetic import in_float64

ORIGINAL = 0.2
"""Share that the paper's code keeps."""
_ALPHAEDIT = 0.4


def rect(
    weight: Float[Tensor, "d_in d_out"],
    change: Float[Tensor, "d_in d_out"],
    keep: Share | Literal["alphaedit"] = ORIGINAL,
) -> Float[Tensor, "d_in d_out"]:
    """The change with all but its relatively largest entries set to 0.

    Args:
        weight: The matrix before the change. A change of an entry that is 0 is infinitely large beside it.
        change: What an edit adds to it; left as it is.
        keep: Share of the entries that stay, to the nearest count; or "alphaedit" for that source's rule (see above).

    Returns:
        A new matrix in float64, on the change's device where that has it.
    """
    weight, change = in_float64(weight), in_float64(change)
    return change * _kept(weight.to(change.device), change, keep)


def _kept(
    weight: Float[Tensor, "d_in d_out"], change: Float[Tensor, "d_in d_out"], keep: float | Literal["alphaedit"]
) -> Bool[Tensor, "d_in d_out"]:
    if keep == "alphaedit":
        ratio = (change / (weight + 1e-8)).abs()
        return ratio >= ratio.flatten().kthvalue(max(1, int(ratio.numel() * (1 - _ALPHAEDIT)))).values
    ratio = (change / weight).abs().nan_to_num(nan=0, posinf=torch.inf)  # 0 / 0 is no change
    kept = torch.zeros(ratio.numel(), dtype=torch.bool, device=ratio.device)
    kept[ratio.flatten().topk(round(keep * ratio.numel())).indices] = True
    return kept.view_as(ratio)
