"""MEND's gradient transform: two low-rank residual layers on what the gradient of a matrix is made of.

For a row z = [x; delta] of D = d_in + d_out normalised coordinates, and the mode m of its matrix,

    h = z + relu(s1_m * (U1 V1 z + b1) + o1_m)
    g = h + relu(s2_m * (U2 V2 h + b2) + o2_m)

The relu acts in both layers, although the released code has a switch for it, so that each layer can only add. With
U = 0 a new transform is the identity. Normalisation is not undone afterwards.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_rome.editors.trained.mend.statistics import RunningStatistics

LAYERS = 2
"""As released (one hidden layer)."""


class LowRankLayer(nn.Module):
    """One residual layer, the identity at first: V is drawn from N(0, 1), all else is 0, scales are 1.

    Args:
        width: Coordinates of a row.
        rank: Of U V.
        modes: Matrices that share the layer, each with scales and shifts of its own.
        generator: Draws V, on the CPU.
    """

    def __init__(self, width: int, rank: int, modes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.zeros(width, rank))
        self.V = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.b = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, rows: Float[Tensor, "rows width"], modes: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """The rows with what is added to them."""
        inside = self.scale[modes] * (rows @ self.V.T @ self.U.T + self.b) + self.shift[modes]
        # Not torch.relu: its gradient at exactly 0, where the layer begins, is 0, and U would never learn.
        return rows + inside.clamp(min=0)


class GradientTransform(nn.Module):
    """The transform of all edited matrices of one shape: shared layers, running statistics, a mode for each.

    Args:
        d_in: Rows of the matrices.
        d_out: Their columns.
        rank: Of the layers; D at most.
        modes: Number of matrices.
        sd_floor: See `RunningStatistics.normalise`.
        generator: Draws the layers, on the CPU.
    """

    def __init__(
        self, d_in: int, d_out: int, rank: int, modes: int, *, sd_floor: float = 0.0, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sizes, self.sd_floor, width = (d_in, d_out), sd_floor, d_in + d_out
        self.statistics = RunningStatistics(width)
        self.layers = nn.ModuleList(LowRankLayer(width, min(rank, width), modes, generator) for _ in range(LAYERS))

    def count(self, left: Float[Tensor, "rows d_in"], right: Float[Tensor, "rows d_out"]) -> None:
        """Take rows into the running statistics."""
        self.statistics.count(torch.cat([left, right], dim=1))

    def forward(
        self, left: Float[Tensor, "rows d_in"], right: Float[Tensor, "rows d_out"], modes: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]:
        """The pseudo-inputs and pseudo-gradients that make up the edit.

        Args:
            left: Inputs of the matrices.
            right: Gradients at their outputs.
            modes: Which matrix each row is of.

        Raises:
            NumericsError: If fewer than two rows were ever counted.
        """
        rows = self.statistics.normalise(torch.cat([left, right], dim=1), self.sizes, self.sd_floor)
        rows = rows.to(cast(LowRankLayer, self.layers[0]).V.dtype)
        for layer in self.layers:
            rows = layer(rows, modes)
        made_left, made_right = rows.split(self.sizes, dim=1)
        return made_left, made_right
