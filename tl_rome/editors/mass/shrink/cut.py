"""What a configuration cuts from the finished change of a layer."""

from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.mass.config import MassConfig
from tl_rome.editors.mass.shrink.prune import prune
from tl_rome.editors.mass.shrink.rect import rect


def cut(
    weight: Float[Tensor, "d_in d_out"], change: Float[Tensor, "d_in d_out"], config: MassConfig
) -> Float[Tensor, "d_in d_out"]:
    """The change as RECT or PRUNE leaves it; float64.

    Args:
        weight: The matrix before the batch; the unedited one in a first batch.
        change: What the batch adds to it.
        config: Says which, if any.
    """
    if config.rect_share is not None:
        return rect(weight, change, config.rect_share)
    return change if config.prune_base is None else prune(weight, change, config.prune_base)
