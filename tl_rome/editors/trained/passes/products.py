"""Sums of outer products, one for each edit of a batch: gradients of a matrix and changes of it, without the matrix.

The gradient of y = x W is the sum over positions of x_t (x) dL/dy_t, and what MEND and KE make of it is again such a
sum. So both are kept as rows: those of all edits one below the other, with a note of whose each is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OuterProducts:
    """For each edit of a batch, a low-rank matrix [d_in, d_out]: the sum over its rows of left (x) right."""

    left: Float[Tensor, "rows d_in"]
    """Inputs of the matrix, or what stands for them."""
    right: Float[Tensor, "rows d_out"]
    """Gradients at its outputs, or what stands for them."""
    owners: Int[Tensor, " rows"]
    """Which edit each row belongs to, ascending."""

    def of(self, edit: int) -> tuple[Float[Tensor, "own d_in"], Float[Tensor, "own d_out"]]:
        """The rows of one edit."""
        own = self.owners == edit
        return self.left[own], self.right[own]

    def select(self, edits: Sequence[int]) -> "OuterProducts":
        """The rows of some edits, given in ascending order and numbered anew."""
        chosen = torch.tensor(edits, dtype=torch.long, device=self.owners.device)
        kept = torch.isin(self.owners, chosen)
        return OuterProducts(self.left[kept], self.right[kept], torch.searchsorted(chosen, self.owners[kept]))

    def finite(self, edits: int) -> Bool[Tensor, " edits"]:
        """For each of so many edits, whether all of its rows are."""
        wrong = ~(self.left.isfinite().all(-1) & self.right.isfinite().all(-1))
        return torch.bincount(self.owners[wrong], minlength=edits) == 0

    def padded(self, edits: int) -> tuple[Float[Tensor, "edits rank d_in"], Float[Tensor, "edits rank d_out"]]:
        """The rows of so many edits side by side; what one has fewer than others is filled with zeros."""
        counts = torch.bincount(self.owners, minlength=edits)
        place = torch.arange(len(self.owners), device=counts.device) - (counts.cumsum(0) - counts)[self.owners]
        size = (edits, int(counts.max()))
        left, right = (part.new_zeros(*size, part.shape[1]) for part in (self.left, self.right))
        return (
            left.index_put((self.owners, place), self.left),
            right.index_put((self.owners, place), self.right),
        )
