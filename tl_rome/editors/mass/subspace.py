"""The directions of key space that text uses least, to which AlphaEdit confines what it writes (2410.02355).

C has full rank: no direction is unused. The release takes the eigenvectors of C below an absolute 2e-2, a number in the
units of C that means something else for every model and layer; a share of energy compares: the directions of least
eigenvalue that together hold at most this share of tr C. Statistics of few tokens make directions look unused that are
not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.covariance.null_space import null_space
from tl_rome.errors import InputError

ENOUGH_TOKENS = 10
"""Tokens per dimension below which statistics are too few to say which directions text does not use."""


@dataclass(frozen=True, eq=False)
class KeySubspace:
    """An orthonormal basis Q of the directions of least energy; P = Q Q^T."""

    basis: Float[Tensor, "d_mlp rank"]
    """Q; float64, on the CPU."""
    energy: float
    """tr(P C) / tr C."""


def quiet_subspace(
    covariance: KeyCovariance, *, energy_share: float | None = None, absolute_cut: float | None = None
) -> KeySubspace:
    """The eigenvectors of C that hold at most a share of its energy, or those below a cut.

    Args:
        covariance: Key statistics of a layer.
        energy_share: Of tr C.
        absolute_cut: Largest eigenvalue, itself left out, in the units of C.

    Raises:
        InputError: If not exactly one of the two is given, or no direction is below it.
    """
    if (energy_share is None) == (absolute_cut is None):
        raise InputError(f"give energy_share or absolute_cut, not both or none ({energy_share}, {absolute_cut})")
    values, vectors = covariance.eigen(torch.device("cpu"))
    if energy_share is not None:
        basis = null_space(covariance, energy_share)
    else:
        assert absolute_cut is not None
        basis = vectors[:, : int((values < absolute_cut).sum())]
        if not basis.shape[1]:
            raise InputError(
                f"no direction of layer {covariance.layer} is below absolute_cut={absolute_cut}; give more"
            )
    shares = values.clamp(min=0) / values.clamp(min=0).sum()
    return KeySubspace(basis.contiguous(), float(shares[: basis.shape[1]].sum()))


def doubt_of_subspaces(covariances: Iterable[KeyCovariance]) -> str | None:
    """The first layer's `doubt_of_subspace`, if there is any."""
    return next(filter(None, map(doubt_of_subspace, covariances)), None)


def doubt_of_subspace(covariance: KeyCovariance) -> str | None:
    """Why the directions may not be those that text does not use, in words."""
    size = len(covariance.second_moment)
    if covariance.count >= ENOUGH_TOKENS * size:
        return None
    return (
        f"the statistics of layer {covariance.layer} are of {covariance.count} tokens, too few to know which of {size} "
        f"directions text does not use; estimate them from at least {ENOUGH_TOKENS * size}"
    )
