"""How much runs at once: what fits a device's free memory, and what is done where it did not fit after all.

On a CPU every bound is its usual one: larger batches gain nothing there. On an accelerator it is worked out for each
call from the memory that is free and the model's shape, and rounded down to a power of two, so that what little changes
from call to call changes nothing. The estimates of what an item takes are rough and on the large side; a batch for
which memory runs out is halved.
"""

import ctypes
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from tl_rome.running.forward import device_of
from tl_rome.sites import HookedModel

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)
_SHARE = 0.5
"""Of the free memory; the rest is for logits, and for what a model's own code makes besides."""
_MOST_TOKENS = 65536
"""Rows x positions that keep any device busy."""
_GRADIENT_LOGITS = 4
"""Numbers held of each logit that a loss is computed from, while a token in four is scored."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on an accelerator; None on a CPU, and where the device does not say."""
    if device.type == "cpu":
        return None
    try:
        free, _ = torch.accelerator.get_memory_info(device)
        return free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    except (RuntimeError, NotImplementedError, ValueError):
        return None


def fitting(model: HookedModel, what: str, *, usual: int, each: int, most: int) -> int:
    """How many items to work on at once.

    Args:
        model: Says which device it is; its weights are there already.
        what: The items, for the log.
        usual: The answer on a CPU, and where free memory is not known.
        each: Bytes that one item takes.
        most: The largest answer, above which nothing is gained.
    """
    free = free_memory(device_of(model))
    if free is None:
        return usual
    room = max(1, min(most, int(_SHARE * free) // each))
    found = 1 << (room.bit_length() - 1)
    _log.info("%d %s at once: %.1f GiB are free, each may take %.3f", found, what, free / 2**30, each / 2**30)
    return found


def fitting_tokens(model: HookedModel, usual: int, *, trained_from: int | None = None) -> int:
    """Bound on rows x positions that are run at once.

    Args:
        model: The model.
        usual: The answer on a CPU.
        trained_from: First layer that gradients flow through, so that all above keep their activations; None where
            there are no gradients and each block's activations are gone before the next one's are made.
    """
    cfg, size = model.cfg, _bytes_of_number(model)
    attention = cfg.n_heads * cfg.d_head
    block = size * (16 * cfg.d_model + 4 * (cfg.d_mlp or 4 * cfg.d_model) + 4 * attention)
    if trained_from is None:
        each = block
    else:
        each = block * (cfg.n_layers - trained_from) + _GRADIENT_LOGITS * cfg.d_vocab
    return fitting(model, "tokens", usual=usual, each=each, most=_MOST_TOKENS)


def bytes_of_cache(model: HookedModel) -> int:
    """Memory of one token's attention keys and values in all layers."""
    cfg = model.cfg
    heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return 2 * cfg.n_layers * heads * cfg.d_head * _bytes_of_number(model)


def _bytes_of_number(model: HookedModel) -> int:
    return next(model.blocks[0].parameters()).element_size()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, on a CPU too, where torch has no error class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def give_back() -> None:
    """Hand freed memory of the CPU back to the system, where that is Linux with glibc.

    It keeps what lies between blocks in use: all that the largest batch of an optimisation took, for good.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class Halving:
    """Works on batches; once memory has run out for one, that one and all later ones are worked on in smaller parts.

    Args:
        what: The items of a batch, for the log.
    """

    def __init__(self, what: str) -> None:
        self._what, self._parts = what, 1

    def __call__(
        self, batch: Sequence[_Item], work: Callable[[Sequence[_Item]], _Result]
    ) -> Iterator[tuple[Sequence[_Item], _Result]]:
        """Each part of a batch, in order, and what the work on it gave.

        Args:
            batch: Any number of items.
            work: Called with some of them; must be able to do so again after it ran out of memory.

        Raises:
            torch.OutOfMemoryError: If memory does not suffice for a single item.
        """
        pending = deque(_cut(batch, self._parts))
        while pending:
            part = pending.popleft()
            try:
                result = work(part)
            except RuntimeError as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
            else:
                yield part, result
                continue
            # Here, where what the error held is free again.
            self._parts *= 2
            pending = deque(half for each in (part, *pending) for half in _cut(each, 2))
            _log.warning("out of memory with %d %s at once; going on with %d", len(part), self._what, len(pending[0]))


def _cut(batch: Sequence[_Item], parts: int) -> list[Sequence[_Item]]:
    """A batch in so many parts of about equal size, or as many as it has items."""
    size = max(1, -(-len(batch) // parts))
    return [batch[first : first + size] for first in range(0, len(batch), size)]
