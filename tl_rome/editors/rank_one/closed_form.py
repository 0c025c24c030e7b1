"""The closed form of ROME (eq. 2, appendix A): the least change that stores one key and its value.

With rows as keys, W_out = W^T and C = E[k k^T], among all W' with k* W' = v* the one that minimises
||C^1/2 (W' - W)||_F is

    W' = W + u v^T,   u = C^-1 k*,   v = (v* - k* W) / (k* . u)

which is eq. 13 with the Λ of eq. 17. The released code takes u from another key than the one it
stores; what it stores is still stored exactly, but no longer by the least change.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.errors import NumericsError


@dataclass(frozen=True, eq=False)
class Insertion:
    """One key and value stored in a W_out, and what the covariance predicts of it."""

    u: Float[Tensor, " d_mlp"]
    """C^-1 k*, of unit norm."""
    v: Float[Tensor, " d_model"]
    """What u is paired with."""
    divisor: float
    """k . u, by which v* - k W is divided."""
    divisor_ratio: float
    """The divisor over the one that k* itself would have: 1 where both keys are the same."""
    disturbance: float
    """Root mean square of what the edit adds to the MLP's output on the text behind C, over that of the output."""


def insert(
    weight: Float[Tensor, "d_mlp d_model"],
    bias: Float[Tensor, " d_model"],
    covariance: KeyCovariance,
    direction: Float[Tensor, " d_mlp"],
    key: Float[Tensor, " d_mlp"],
    value: Float[Tensor, " d_model"],
) -> Insertion:
    """Store a value under a key, in float64 on the CPU.

    Args:
        weight: W_out.
        bias: What W_out's layer adds to k W.
        covariance: Key statistics of the layer.
        direction: The key that u is solved for.
        key: The key that is to give the value; for the least change it has to be `direction`.
        value: v*, bias included.

    Raises:
        NumericsError: If C is singular, or the two keys are orthogonal under C^-1.
    """
    direction, key, weight = (part.detach().double().cpu() for part in (direction, key, weight))
    solved = covariance.solve(direction)
    u = solved / solved.norm()
    divisor, expected = (key @ u).item(), (direction @ u).item()
    if abs(divisor) < 1e-8 * key.norm().item():
        raise NumericsError(f"k* and C^-1 k* are orthogonal (k . u = {divisor:.3g}); use another covariance")
    v = (value.detach().double().cpu() - key @ weight - bias.detach().double().cpu()) / divisor
    moment = covariance.second_moment
    added = v.norm() * (u @ (moment @ u)).sqrt()
    single = weight.float()
    usual = ((moment.float() @ single) * single).sum().sqrt()
    return Insertion(u, v, divisor, divisor / expected, (added / usual).item())
