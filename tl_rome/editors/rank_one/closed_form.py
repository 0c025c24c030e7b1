"""The closed form of ROME (eq. 2, appendix A): the least change that stores one key and its value.

With rows as keys, W_out = W^T and C = E[k k^T], among all W' with k* W' = v* the one that minimises
||C^1/2 (W' - W)||_F is

    W' = W + u v^T,   u = C^-1 k*,   v = (v* - k* W) / (k* . u)

which is eq. 13 with the Λ of eq. 17. The released code takes u from another key than the one it
stores; what it stores is still stored exactly, but no longer by the least change.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.errors import NumericsError
from tl_rome.running.arithmetic import in_float64


@dataclass(frozen=True, eq=False)
class Insertion:
    """One key and value stored in a W_out, and what the covariance predicts of it."""

    u: Float[Tensor, " d_mlp"]
    """C^-1 k*, of unit norm; float64, on the CPU, as v is."""
    v: Float[Tensor, " d_model"]
    """What u is paired with."""
    key_norm: float
    """Norm of the key that u is solved for."""
    divisor: float
    """k . u, by which v* - k W is divided."""
    divisor_ratio: float
    """The divisor over the one that k* itself would have: 1 where both keys are the same."""
    disturbance: float
    """Root mean square of what the edit adds to the MLP's output on the text behind C, over that of the output."""


class Memory:
    """A layer's W_out as what keys and values are stored in, with all that does not depend on them computed once.

    Works in float64, on the weight's device where that has it, else on the CPU.

    Args:
        weight: W_out; left as it is.
        bias: What W_out's layer adds to k W.
        covariance: Key statistics of the layer.
    """

    def __init__(
        self, weight: Float[Tensor, "d_mlp d_model"], bias: Float[Tensor, " d_model"], covariance: KeyCovariance
    ) -> None:
        self._weight, self._bias, self._covariance = in_float64(weight), in_float64(bias), covariance

    def output(self, key: Float[Tensor, " d_mlp"]) -> Float[Tensor, " d_model"]:
        """What the layer gives for a key, bias included."""
        return in_float64(key) @ self._weight + self._bias

    def insert(
        self, direction: Float[Tensor, " d_mlp"], key: Float[Tensor, " d_mlp"], value: Float[Tensor, " d_model"]
    ) -> Insertion:
        """Store a value under a key.

        Args:
            direction: The key that u is solved for.
            key: The key that is to give the value; for the least change it has to be `direction`.
            value: v*, bias included.

        Raises:
            NumericsError: If C is singular, or the two keys are orthogonal under C^-1.
        """
        direction, key = in_float64(direction), in_float64(key)
        solved = self._covariance.solve(direction)
        u = solved / solved.norm()
        v = (in_float64(value) - self.output(key)) / (key @ u)
        added = v.norm() * (u @ self._root).norm()
        norms = key.norm(), direction.norm(), added / self._usual
        figures = torch.stack([key @ u, direction @ u, *norms]).tolist()
        divisor, expected, size, key_norm, disturbance = figures
        if abs(divisor) < 1e-8 * size:
            raise NumericsError(f"k* and C^-1 k* are orthogonal (k . u = {divisor:.3g}); use another covariance")
        return Insertion(u.cpu(), v.cpu(), key_norm, divisor, divisor / expected, disturbance)

    @property
    def _root(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """L of C = L L^T."""
        return self._covariance.factor(self._weight.device)

    @cached_property
    def _usual(self) -> Float[Tensor, ""]:
        """Root mean square of k W on the text behind C, from float32 products."""
        return (self._root.float().T @ self._weight.float()).norm()
