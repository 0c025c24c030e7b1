"""Keys and states of all edited layers in one sweep from the bottom to the highest of them.

Each block is run once on every row, after the layers below have been written: its run gives the keys of its layer, and
its output moves on by what is then written there, key times change at every position. Only the bare prompts go on to
the highest layer each time, where the residual is measured. Rows end with the subject's last token, and those of one
context share the states of the tokens that they begin with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.editors.mass.sweeps.protocol import Change, Keys, States, chunks, read_last
from tl_rome.editors.mass.sweeps.whole_sweep import WholeSweep
from tl_rome.editors.rank_one.value_settings import ValueSite
from tl_rome.running.arithmetic import in_float64
from tl_rome.running.blocks import BlockRunner, Past, check_blocks
from tl_rome.running.forward import device_of, last_resid, read, record
from tl_rome.running.hooks import Hook, hooked
from tl_rome.running.matrices import key_hook, value_hook
from tl_rome.sites import HookedModel, Site
from tl_rome.tokens import pad


@dataclass(eq=False)
class _Rows:
    """Some facts in one context; states are those of the block that is run next."""

    facts: Int[Tensor, " rows"]
    last: Int[Tensor, " rows"]
    """Place of the subject's last token, counted from `start`."""
    runner: BlockRunner
    states: Float[Tensor, "rows pos d_model"]
    """From `start` on."""
    opening_runner: BlockRunner
    opening: Float[Tensor, "1 start d_model"]
    """Of the tokens that all rows begin with, perhaps none."""
    keys: tuple[Float[Tensor, "rows pos d_mlp"], Float[Tensor, "1 start d_mlp"]] | None = None
    """Of the layer measured last."""

    def at_subject(self, values: Float[Tensor, "rows pos size"]) -> Float[Tensor, "rows size"]:
        return values[torch.arange(len(values), device=values.device), self.last]


class LayerSweep:
    """The sweep of this module; see `Sweep`."""

    @torch.no_grad()
    def __init__(
        self,
        model: HookedModel,
        rows: Sequence[Sequence[Int[Tensor, " _"]]],
        last: int,
        site: ValueSite,
        max_batch_tokens: int,
    ) -> None:
        self._model, self._last, self._site, self._next = model, last, site, 0
        self._whole = WholeSweep(model, rows, last, site, max_batch_tokens)
        self._facts, self._contexts = len(rows[0]), len(rows)
        one = rows[0][0][None, :1].to(device_of(model))
        _, attended = record(model, one, {last_resid(model)})
        runner = BlockRunner(model, one, 0)
        self._empty: list[Past] = [runner.crop(each) for each in attended]
        self._groups = [
            [self._rows(group, chunk) for chunk in chunks([len(row) for row in group], max_batch_tokens)]
            for group in rows
        ]
        self._output: States | None = None
        found = self._go_on(0, None)
        expected = read_last(model, rows[0], Site("resid_post", last).hook, max_batch_tokens)
        check_blocks(found[0], expected)
        self._change: Change | None = None

    def _rows(self, group: Sequence[Int[Tensor, " _"]], chunk: Sequence[int]) -> _Rows:
        batch = pad([group[index] for index in chunk])
        tokens, model = batch.tokens.to(device_of(self._model)), self._model
        same = (tokens == tokens[0]).all(0).long().cumprod(0).sum()
        start = min(int(same), int(batch.lengths.min()) - 1)
        entering = Site("resid_pre", 0).hook
        states = read(model, tokens, [entering])[entering]
        return _Rows(
            torch.tensor(chunk),
            (batch.lengths - 1 - start).to(tokens.device),
            BlockRunner(model, tokens, start),
            states[:, start:],
            BlockRunner(model, tokens[:1, : max(start, 1)], 0),
            states[:1, :start],
        )

    def _block(
        self, rows: _Rows, layer: int, states: Tensor, opening: Tensor
    ) -> tuple[Float[Tensor, "rows pos d_model"], Float[Tensor, "1 start d_model"]]:
        past = self._empty[layer]
        if opening.shape[1]:
            past_of_rows = rows.opening_runner.attended(layer, opening, past)
            opening = rows.opening_runner(layer, opening, past)
        else:
            past_of_rows = past
        return rows.runner(layer, states, past_of_rows), opening

    def _go_on(self, layer: int, known: dict[int, Tensor] | None) -> tuple[States, States]:
        """The last layer's output and that of its W_out, for the bare prompts, from the input of a layer on.

        Args:
            layer: The next one to run on the states given.
            known: W_out's output where the last layer has been run already, by chunk.
        """
        found: list[Tensor] = [torch.empty(0)] * self._facts
        inner: list[Tensor] = [torch.empty(0)] * self._facts
        for number, rows in enumerate(self._groups[0]):
            states, opening, outputs = rows.states, rows.opening, list[Tensor]()
            with hooked(self._model, [value_hook(self._model, self._last, outputs.append)]):
                for each in range(layer, self._last + 1):
                    states, opening = self._block(rows, each, states, opening)
            output = known[number] if known is not None else rows.at_subject(outputs[-1])
            for place, (state, value) in enumerate(zip(rows.at_subject(states), output, strict=True)):
                found[int(rows.facts[place])], inner[int(rows.facts[place])] = state, value
        return torch.stack(found), torch.stack(inner)

    @torch.no_grad()
    def measure(self, layer: int) -> tuple[Keys, States]:
        """See `Sweep`."""
        for each in range(self._next, layer):
            for rows in self._all:
                rows.states, rows.opening = self._block(rows, each, rows.states, rows.opening)
        self._next = layer + 1
        keys: dict[tuple[int, int], Tensor] = {}
        outputs: dict[int, Tensor] = {}
        for context, group in enumerate(self._groups):
            for number, rows in enumerate(group):
                seen, values = list[Tensor](), list[Tensor]()
                hooks: list[Hook] = [
                    (key_hook(layer), lambda value, hook, seen=seen: seen.append(value)),
                    value_hook(self._model, layer, values.append),
                ]
                with hooked(self._model, hooks):
                    rows.states, rows.opening = self._block(rows, layer, rows.states, rows.opening)
                rows.keys = seen[-1], seen[-2] if len(seen) > 1 else seen[-1][:1, :0]
                if context == 0:
                    outputs[number] = rows.at_subject(values[-1])
                for fact, key in zip(rows.facts.tolist(), rows.at_subject(rows.keys[0]), strict=True):
                    keys[fact, context] = key
        table = [torch.stack([keys[fact, context] for context in range(self._contexts)]) for fact in range(self._facts)]
        found, inner = self._go_on(layer + 1, outputs if layer == self._last else None)
        self._output = found if self._site == "resid_post" else inner
        return in_float64(torch.stack(table)), in_float64(self._output)

    @property
    def _all(self) -> list[_Rows]:
        return [rows for group in self._groups for rows in group]

    @torch.no_grad()
    def written(self, layer: int, change: Change) -> None:
        """See `Sweep`."""
        added: list[Tensor] = [torch.empty(0)] * self._facts
        for number, rows in enumerate(self._all):
            assert rows.keys is not None, "a layer is measured before it is written"
            ours, opening = (part @ change.to(part) for part in rows.keys)
            rows.states, rows.opening, rows.keys = rows.states + ours, rows.opening + opening, None
            if number < len(self._groups[0]):
                for fact, value in zip(rows.facts.tolist(), rows.at_subject(ours), strict=True):
                    added[fact] = value
        self._added = torch.stack(added)

    def final(self) -> States:
        """See `Sweep`; the last layer has been written."""
        assert self._output is not None
        assert self._next == self._last + 1
        return in_float64(self._output + self._added)

    def anew(self) -> States:
        """See `Sweep`."""
        return self._whole.final()
