"""The directions that text hardly uses, in which AlphaEdit (arXiv 2410.02355) writes, and how well they are known.

C = E[k k^T] has no exact null space on real models: its spectrum is smooth. So the directions are the eigenvectors with
the smallest eigenvalues that together hold at most a share of the energy tr C. (The released code cuts eigenvalues at
2e-2, which means something else on every model.) From few tokens the smallest eigenvalues come out too small, and what
seems to be empty is not: `null_space_leak` shows it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Share
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.errors import InputError


def null_space(
    covariance: KeyCovariance, energy_share: Share, device: torch.device | None = None
) -> Float[Tensor, "d_mlp rank"]:
    """An orthonormal basis of the directions that together hold at most a share of the keys' energy.

    Args:
        covariance: Key statistics of the layer.
        energy_share: Most of tr C that the directions may hold, such as 0.05.
        device: Where the basis is wanted; on the CPU by default, or where the device has no float64.

    Returns:
        Eigenvectors in columns, those of the smallest eigenvalues first; float64.

    Raises:
        InputError: If the share is below that of the smallest eigenvalue, so that there is no direction.
    """
    values, vectors = covariance.eigen(device or torch.device("cpu"))
    shares = values.clamp(min=0).cumsum(0) / values.sum()
    rank = int((shares <= energy_share).sum())
    if not rank:
        raise InputError(
            f"energy_share is {energy_share:g}, and the smallest eigenvalue alone holds {float(shares[0]):.2g} of the "
            f"energy of layer {covariance.layer}; give more"
        )
    return vectors[:, :rank]


def null_space_leak(first: KeyCovariance, second: KeyCovariance, energy_share: Share) -> float:
    """How much of other text's energy lies where some statistics see at most a share of theirs.

    Args:
        first: The statistics that are to be judged.
        second: Statistics of the same layer from other text of the same kind: a held-out half, or samples with another
            seed. A tenth of the tokens is enough: an average over directions is known well from few.
        energy_share: Defines the `null_space` of the first.

    Returns:
        tr(Q^T C2 Q) / tr C2, to be compared with the share itself: near it the null space is known; 1.5 times it says
        that the first statistics are of too few tokens, or of other text. SmolLM2's layers 3 and 7 at 5% have 4.6 times
        it from 3,000 tokens of encyclopedia, 2.5 from 8,000, 1.8 from 16,000, 1.4 from 32,000, 1.2 from 65,000.

    Raises:
        InputError: If the two are of different layers or sizes, or the share is too small.
    """
    if first.layer != second.layer or first.second_moment.shape != second.second_moment.shape:
        raise InputError(f"{first!r} and {second!r} are not of one layer of one model")
    basis = null_space(first, energy_share)
    return float((basis * (second.second_moment @ basis)).sum() / second.second_moment.trace())
