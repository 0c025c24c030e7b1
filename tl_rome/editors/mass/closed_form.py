"""The one closed form of all mass editors: what a layer gets so that its keys move towards what they should give.

With columns as keys, K [d_mlp, n], and R [d_model, n] what W_out's output should change by at them, every editor adds

    Delta^T = A^-1 K (I + K^T A^-1 K)^-1 R^T = (A + K K^T)^-1 K R^T     [d_mlp, d_model]

to W_out; they differ in the prior A, what has to be kept:

    MEMIT           lambda C                       (Meng et al. 2023, arXiv 2210.07229, eq. 14)
    EMMET           e w C, and C with equality for e = 0  (Gupta et al. 2024, 2403.14236; its
                    C^-1 K (K^T C^-1 K + e w I)^-1 is MEMIT's with lambda = e w)
    ENCORE          lambda C + rho I               (2502.01636)
    key memory      plus K K^T of all earlier batches, so that batches one after another equal one solve over all facts
    AlphaEdit       L2 I on range(P), infinite outside it, plus earlier keys inside  (2410.02355; its order of P and
                    K K^T gives the same solution)

A is written as weight * B, so that a weight of 0, exact equality, needs no division: K^T Delta^T = R^T then.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.errors import InputError, NumericsError
from tl_rome.running.arithmetic import in_float64

Matrix = Float[Tensor, "d_mlp d_mlp"]


@dataclass(frozen=True, eq=False)
class CovariancePrior:
    """A = weight C + ridge I + earlier.

    Raises:
        InputError: If the weight is 0, exact equality, and there is a ridge or a memory, which that leaves no room for.
    """

    covariance: KeyCovariance
    weight: float
    """lambda; 0 means that the new keys get exactly what is asked for, by the least change under C."""
    ridge: float = 0.0
    """rho."""
    earlier: Matrix | None = None
    """K K^T of all earlier keys."""

    def __post_init__(self) -> None:
        if self.weight == 0 and (self.ridge or self.earlier is not None):
            raise InputError("a covariance weight of 0 stores facts exactly; use no ridge and no key memory with it")

    @property
    def _plain(self) -> bool:
        return not self.ridge and self.earlier is None

    @property
    def scale(self) -> float:
        """A = scale * B, where `solve` gives B^-1 K."""
        return self.weight if self._plain else 1.0

    def solve(self, keys: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
        """B^-1 K; C is factored once, whatever the weights of those who share it.

        Raises:
            NumericsError: If the prior is singular.
        """
        if self._plain:
            return self.covariance.solve(keys.T).T
        return _solve(self.matrix(keys.device), keys)

    def matrix(self, device: torch.device) -> Matrix:
        """A itself."""
        found = self.weight * self.covariance.second_moment.to(device)
        if self.earlier is not None:
            found = found + self.earlier.to(device)
        return found + self.ridge * torch.eye(len(found), dtype=found.dtype, device=device)


@dataclass(frozen=True, eq=False)
class SubspacePrior:
    """A = l2 I + earlier on the span of orthonormal columns Q, and infinite outside: every change lies in that span."""

    basis: Float[Tensor, "d_mlp rank"]
    """Q."""
    l2: float
    earlier: Matrix | None = None
    """K K^T of all earlier keys."""

    @property
    def scale(self) -> float:
        """See `CovariancePrior`."""
        return self.l2 if self.earlier is None else 1.0

    def solve(self, keys: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
        """B^-1 K.

        Raises:
            NumericsError: If the prior is singular.
        """
        basis = self.basis.to(keys.device)
        inside = basis.T @ keys
        if self.earlier is not None:
            inside = _solve(self._inside(basis), inside)
        return basis @ inside

    def _inside(self, basis: Float[Tensor, "d_mlp rank"]) -> Float[Tensor, "rank rank"]:
        """A in the coordinates of the span."""
        found = self.l2 * torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        return found if self.earlier is None else found + basis.T @ self.earlier.to(basis.device) @ basis


Prior = CovariancePrior | SubspacePrior


def key_directions(prior: Prior, keys: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
    """(A + K K^T)^-1 K, which times R^T is the change of W_out; by the n x n form, or the other one where n > d_mlp.

    Args:
        prior: What has to be kept.
        keys: K, columns are keys; float64 on the device that the work is to be done on.

    Returns:
        float64. Where the prior's weight is 0, C^-1 K (K^T C^-1 K)^-1.

    Raises:
        InputError: If a weight of 0 asks for more exact outputs than there are dimensions.
        NumericsError: If the prior is singular, or keys are so alike that they cannot be told apart without a weight.
    """
    keys = in_float64(keys)
    if keys.shape[1] > keys.shape[0]:
        return _wide(prior, keys)
    solved = prior.solve(keys)
    gram = keys.T @ solved
    gram = (gram + gram.T) / 2
    inner = prior.scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device) + gram
    return _solve(inner, solved.T).T


def _wide(prior: Prior, keys: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
    """The form whose system is as large as the prior."""
    if isinstance(prior, SubspacePrior):
        basis = prior.basis.to(keys.device)
        inside = basis.T @ keys
        return basis @ _solve(prior._inside(basis) + inside @ inside.T, inside)
    if prior.weight == 0:
        raise InputError(
            f"{keys.shape[1]} facts cannot be stored exactly in {keys.shape[0]} dimensions; give a covariance weight"
        )
    return _solve(prior.matrix(keys.device) + keys @ keys.T, keys)


def _solve(matrix: Float[Tensor, "n n"], right: Float[Tensor, "n columns"]) -> Float[Tensor, "n columns"]:
    """By Cholesky."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise NumericsError(
            f"a system of {len(matrix)} equations is singular: keys repeat each other or statistics are of too few "
            "tokens; leave out facts of one subject or merge them, give a larger weight, or estimate C from more text"
        )
    return torch.cholesky_solve(right, factor)
