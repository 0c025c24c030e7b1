"""What a sweep over the edited layers gives, and how rows of any length are read."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.running.forward import read
from tl_rome.sites import HookedModel
from tl_rome.tokens import pad

Keys = Float[Tensor, "facts contexts d_mlp"]
States = Float[Tensor, "facts d_model"]
Change = Float[Tensor, "d_mlp d_model"]


@runtime_checkable
class Sweep(Protocol):
    """Keys and states of a model whose layers are written one after another, ascending."""

    def measure(self, layer: int) -> tuple[Keys, States]:
        """A layer's keys in each context, and the highest layer's state for the bare prompts, before it is written."""
        ...

    def written(self, layer: int, change: Change) -> None:
        """Take note of what W_out of the layer measured last has got, which the model has now."""
        ...

    def final(self) -> States:
        """The highest layer's state for the bare prompts with all layers written."""
        ...

    def anew(self) -> States:
        """The same in the model as it is now, whatever has been written."""
        ...


@torch.no_grad()
def read_last(
    model: HookedModel, rows: Sequence[Int[Tensor, " _"]], name: str, most: int
) -> Float[Tensor, "facts size"]:
    """What a hook point has at each row's last token."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for chunk in chunks([len(row) for row in rows], most):
        batch = pad([rows[index] for index in chunk])
        values = read(model, batch.tokens, [name])[name]
        for index, value, length in zip(chunk, values, batch.lengths.tolist(), strict=True):
            found[index] = value[length - 1]
    return torch.stack(found)


def chunks(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices of rows in parts, short ones first, so that rows times the longest one's positions stay in the bound."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if chunks and (len(chunks[-1]) + 1) * lengths[index] <= most:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks
