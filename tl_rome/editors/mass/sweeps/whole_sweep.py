"""The same as `LayerSweep` by runs of the whole model, for models whose blocks cannot be run one by one."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.editors.mass.sweeps.protocol import Change, Keys, States, chunks, read_last
from tl_rome.editors.rank_one.value_settings import ValueSite
from tl_rome.running.arithmetic import in_float64
from tl_rome.running.forward import read
from tl_rome.running.matrices import key_hook, value_hook
from tl_rome.sites import HookedModel, Site
from tl_rome.tokens import pad


class WholeSweep:
    """The sweep of this module; see `Sweep`."""

    def __init__(
        self,
        model: HookedModel,
        rows: Sequence[Sequence[Int[Tensor, " _"]]],
        last: int,
        site: ValueSite,
        max_batch_tokens: int,
    ) -> None:
        self._model, self._rows, self._last, self._most = model, rows, last, max_batch_tokens
        self._site = site

    def measure(self, layer: int) -> tuple[Keys, States]:
        """See `Sweep`."""
        keys = [read_last(self._model, group, key_hook(layer), self._most) for group in self._rows]
        return in_float64(torch.stack(keys, 1)), self.final()

    def written(self, layer: int, change: Change) -> None:
        """See `Sweep`: the model has it."""

    @torch.no_grad()
    def final(self) -> States:
        """See `Sweep`."""
        post = Site("resid_post", self._last).hook
        if self._site == "resid_post":
            return in_float64(read_last(self._model, self._rows[0], post, self._most))
        found: list[Tensor] = [torch.empty(0)] * len(self._rows[0])
        for chunk in chunks([len(row) for row in self._rows[0]], self._most):
            batch, outputs = pad([self._rows[0][index] for index in chunk]), list[Tensor]()
            hook = value_hook(self._model, self._last, outputs.append)
            read(self._model, batch.tokens, [post], hooks=[hook])
            for index, output, length in zip(chunk, outputs[-1], batch.lengths.tolist(), strict=True):
                found[index] = output[length - 1]
        return in_float64(torch.stack(found))

    def anew(self) -> States:
        """See `Sweep`."""
        return self.final()
