"""Mean and spread of every coordinate of the rows that a transform has seen in training.

Welford's recursion over rows, k <- k + 1, mu <- mu + (z - mu) / k, S <- S + (z - mu_before)(z - mu), with the standard
deviation sqrt(S / (k - 1)), a whole batch at a time by Chan's merge, which is the same up to rounding. The released
code counts in float32, where 1 + 2^24 = 2^24, and forgets its statistics when it is loaded, so that the first edits at
test time replace them.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_rome.errors import NumericsError

EPSILON = 1e-7
"""Added to every spread."""


class RunningStatistics(nn.Module):
    """Statistics in float64, counted by `count` only; part of `state_dict()`.

    Args:
        width: Coordinates of a row.
    """

    rows: Tensor
    mean: Float[Tensor, " width"]
    squares: Float[Tensor, " width"]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    def count(self, rows: Float[Tensor, "rows width"]) -> None:
        """Take rows into account."""
        if not len(rows):
            return
        rows, before = rows.detach().double(), self.rows.double()
        mean, share = rows.mean(0), len(rows) / (before + len(rows))
        shift = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + shift**2 * before * share
        self.mean += shift * share
        self.rows += len(rows)

    def deviation(self) -> Float[Tensor, " width"]:
        """Standard deviation of each coordinate, the unbiased one.

        Raises:
            NumericsError: If fewer than two rows were counted.
        """
        if int(self.rows) < 2:
            raise NumericsError(
                f"a spread cannot be taken of {int(self.rows)} rows; train the editor, or let more edits be counted "
                "before training (warm_up)"
            )
        return (self.squares / (self.rows - 1)).sqrt()

    def normalise(
        self, rows: Float[Tensor, "rows width"], sizes: tuple[int, ...], floor: float = 0.0
    ) -> Float[Tensor, "rows width"]:
        """Each coordinate without its mean, in units of its standard deviation; nothing is counted.

        Args:
            rows: Of any type; float64 is returned.
            sizes: Widths of the parts that rows are made of, whose coordinates are of one kind each.
            floor: Least standard deviation, as a share of the median of its part: a coordinate that never varied in
                training would otherwise be divided by `EPSILON` when it does. 0 is the released behaviour.

        Raises:
            NumericsError: If fewer than two rows were counted.
        """
        deviation = torch.cat([part.clamp(min=floor * part.median()) for part in self.deviation().split(sizes)])
        return (rows.double() - self.mean) / (deviation + EPSILON)
