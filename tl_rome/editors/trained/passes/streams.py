"""Residual streams of many texts below the edited blocks, each computed once and kept.

Texts are computed in groups of about equal length that depend on the texts alone, so that a stream is the same bit for
bit whenever it is asked for: a training that was interrupted goes on as if it had not been.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.editors.trained.passes.upper import UpperBlocks

_GROUP = 16
"""Texts that pass the lower blocks together."""
_MOST_BYTES = 1 << 30
"""What is kept at most; beyond it, streams that were computed long ago are given up, and computed again if needed."""


class Streams:
    """What enters the upper blocks at each of a list of texts.

    Args:
        upper: The blocks.
        sequences: The texts; where one occurs several times it is computed once.
    """

    def __init__(self, upper: UpperBlocks, sequences: Sequence[Int[Tensor, " _"]]) -> None:
        self._upper = upper
        keys = [tuple(sequence.tolist()) for sequence in sequences]
        texts = {key: sequence for key, sequence in zip(keys, sequences, strict=True)}
        ordered = sorted(texts, key=len)
        self._groups = [[texts[key] for key in ordered[at : at + _GROUP]] for at in range(0, len(ordered), _GROUP)]
        places = {key: divmod(number, _GROUP) for number, key in enumerate(ordered)}
        self._places = [places[key] for key in keys]
        self._known: dict[int, list[Tensor]] = {}
        self._bytes = 0

    def __call__(self, indices: Sequence[int]) -> list[Float[Tensor, "_ d_model"]]:
        """The streams of some of the texts."""
        return [self._group(group)[place] for group, place in map(self._places.__getitem__, indices)]

    def _group(self, group: int) -> list[Tensor]:
        if group not in self._known:
            found = self._upper.enter(self._groups[group])
            while self._known and self._bytes + _size(found) > _MOST_BYTES:
                self._bytes -= _size(self._known.pop(next(iter(self._known))))
            self._known[group] = found
            self._bytes += _size(found)
        return self._known[group]


def _size(streams: Sequence[Tensor]) -> int:
    return sum(stream.numel() * stream.element_size() for stream in streams)
