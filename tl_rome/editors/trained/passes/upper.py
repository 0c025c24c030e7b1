"""The blocks from the lowest edited one up, run by themselves on residual streams that were recorded below them.

Training edits the last blocks only, so each text passes the blocks below once, and the upper ones as often as it is
used. All texts are padded on the right, which causal attention never sees.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tl_rome.running.blocks import BlockRunner, check_blocks, first_run
from tl_rome.running.forward import device_of, last_resid, read, record
from tl_rome.sites import HookedModel, Site
from tl_rome.tokens import pad


class UpperBlocks:
    """Runs the blocks from one layer up, differentiably and with whatever hooks are on them.

    Args:
        model: Borrowed and left as found; its parameters should be `frozen`, or gradients are dear.
        lowest: The first of these blocks.

    Raises:
        UnsupportedModelError: If the model's blocks cannot be run one by one.
    """

    def __init__(self, model: HookedModel, lowest: int) -> None:
        self.model, self._layers = model, range(lowest, model.cfg.n_layers)
        self._below, self._top = Site("resid_pre", lowest).hook, last_resid(model)
        self._runners: dict[int, BlockRunner] = {}
        tokens = torch.tensor([[0, min(1, model.cfg.d_vocab - 1), 0]], device=device_of(model))
        with torch.no_grad(), first_run():
            found, attended = record(model, tokens, {self._below, self._top})
            self._past = [self._runner(3).crop(attended[layer]) for layer in self._layers]
            check_blocks(self(found[self._below]), found[self._top])

    def __call__(self, streams: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows pos d_model"]:
        """The last block's output.

        Args:
            streams: What enters the lowest of the blocks.
        """
        runner, rows = self._runner(streams.shape[1]), len(streams)
        for layer, (keys, values) in zip(self._layers, self._past, strict=True):
            nothing = keys.expand(rows, *keys.shape[1:]), values.expand(rows, *values.shape[1:])
            streams = runner(layer, streams, nothing)
        return streams

    @torch.no_grad()
    def enter(self, sequences: Sequence[Int[Tensor, " _"]]) -> list[Float[Tensor, "_ d_model"]]:
        """The residual stream of each text below the blocks, from one batch through those."""
        batch = pad(list(sequences))
        found = read(self.model, batch.tokens, [self._below])[self._below]
        return [row[:length].clone() for row, length in zip(found, batch.lengths.tolist(), strict=True)]

    def _runner(self, length: int) -> BlockRunner:
        """For texts of a length; what a bridge hands to its blocks depends on nothing else."""
        if length not in self._runners:
            tokens = torch.zeros(1, length, dtype=torch.long, device=device_of(self.model))
            self._runners[length] = BlockRunner(self.model, tokens, 0)
        return self._runners[length]


class RememberedTexts:
    """Streams of texts below the upper blocks, each computed when it is first asked for; and runs to the top."""

    def __init__(self, upper: UpperBlocks) -> None:
        self.upper = upper
        self._known: dict[tuple[int, ...], Tensor] = {}

    def streams(self, sequences: Sequence[Int[Tensor, " _"]]) -> list[Float[Tensor, "_ d_model"]]:
        """What enters the blocks at each text."""
        keys = [tuple(sequence.tolist()) for sequence in sequences]
        new = {key: text for key, text in zip(keys, sequences, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self.upper.enter(list(new.values())), strict=True))
        return [self._known[key] for key in keys]

    def run(self, sequences: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, "rows pos d_model"]:
        """The last block's output for each text, with the upper blocks as they are now."""
        return self.upper(stack(self.streams(sequences)))


def stack(streams: Sequence[Float[Tensor, "_ d_model"]]) -> Float[Tensor, "rows pos d_model"]:
    """One batch of streams of different lengths, with zeros behind each."""
    return pad_sequence(list(streams), batch_first=True)
