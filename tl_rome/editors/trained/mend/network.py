"""All of MEND's networks for one list of matrices: a transform for each shape, and a rate for each matrix.

    W <- W + a * sum_t x~_t (x) delta~_t        a: the matrix's own learned rate

The paper subtracts, the released code adds, and starts at a = +1e-4: an untrained edit then lowers the probability of
its target, and the rate has to cross zero in training. Here rates start negative unless released training is asked for.
The released evaluation takes the rates of W_in and W_out of GPT-2 for each other; here each belongs to its matrix.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tl_rome.editors.trained.mend.config import MendConfig
from tl_rome.editors.trained.mend.transform import GradientTransform
from tl_rome.editors.trained.network import EditNetwork
from tl_rome.editors.trained.passes.products import OuterProducts


class MendNetwork(EditNetwork):
    """Transforms and rates.

    Args:
        shapes: (d_in, d_out) of each edited matrix, in order; those of a shape share a transform, with modes in order.
        config: Settings.
        generator: Draws the transforms, on the CPU.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], config: MendConfig, generator: torch.Generator) -> None:
        super().__init__()
        self._config, self._shapes = config, [(d_in, d_out) for d_in, d_out in shapes]
        self.transforms = nn.ModuleDict(
            {
                _name(shape): GradientTransform(
                    *shape,
                    config.rank,
                    self._shapes.count(shape),
                    sd_floor=config.sd_floor,
                    generator=generator,
                )
                for shape in dict.fromkeys(self._shapes)
            }
        )
        self.rates = nn.Parameter(torch.full((len(self._shapes),), config.start_rate))

    def count(self, gradients: Sequence[OuterProducts]) -> None:
        """See `EditNetwork`; matrices are counted in order."""
        for shape, gradient in zip(self._shapes, gradients, strict=True):
            self._transform(shape).count(gradient.left, gradient.right)

    def forward(
        self, gradients: Sequence[OuterProducts], conditions: Sequence[Int[Tensor, " _"]] = ()
    ) -> list[OuterProducts]:
        """See `EditNetwork`; the condition is not used.

        Raises:
            NumericsError: If nothing was ever counted.
        """
        changes: dict[int, OuterProducts] = {}
        for shape in dict.fromkeys(self._shapes):
            own = [index for index, other in enumerate(self._shapes) if other == shape]
            sizes = [len(gradients[index].owners) for index in own]
            modes = torch.arange(len(own), device=self.rates.device).repeat_interleave(
                torch.tensor(sizes, device=self.rates.device)
            )
            left, right = self._transform(shape)(
                torch.cat([gradients[index].left for index in own]),
                torch.cat([gradients[index].right for index in own]),
                modes,
            )
            for index, x, delta in zip(own, left.split(sizes), right.split(sizes), strict=True):
                changes[index] = OuterProducts(x, self.rates[index] * delta, gradients[index].owners)
        return [changes[index] for index in range(len(self._shapes))]

    def groups(self) -> list[dict[str, Any]]:
        """Networks and rates, each with its own learning rate: the released second optimiser never moves a rate."""
        networks = list(self.transforms.parameters())
        return [
            {"params": networks, "lr": self._config.network_learning_rate},
            {"params": [self.rates], "lr": self._config.rates_learning_rate},
        ]

    def _transform(self, shape: tuple[int, int]) -> GradientTransform:
        return cast(GradientTransform, self.transforms[_name(shape)])


def _name(shape: tuple[int, int]) -> str:
    return "x".join(map(str, shape))
