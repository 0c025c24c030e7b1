"""What an operation costs beside the calls of single blocks that it is made of.

Every block of the model has a twin with the same weights and no hooks. Each call of a block is followed by one of its
twin with the same arguments, forward and, where gradients are wanted, backward; those are the bare calls. Their time is
kept apart from the operation's own. On a deep thin model, whose kernels take no time, the ratio of the two says how
much Python there is around each block, as it would on a GPU.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tl_rome.running import blocks, forward


class Bare:
    """Counts and times the bare calls of blocks that go with some work.

    Args:
        model: A HookedTransformer or TransformerBridge.
        twin: Another one with the same weights, with nothing on it.
    """

    def __init__(self, model: Any, twin: Any) -> None:
        self._twins = {id(block): other for block, other in zip(model.blocks, twin.blocks, strict=True)}
        self._class = type(model.blocks[0])
        self._calls, self._bare, self._aside = 0, 0.0, 0.0

    def ratio(self, work: Callable[[], Any]) -> dict[str, float]:
        """CPU-seconds of some work, and of the same block calls by themselves, and the ratio of the two."""
        self._calls, self._bare, self._aside = 0, 0.0, 0.0
        with self._noted():
            started = time.process_time()
            work()
            seconds = time.process_time() - started - self._aside
        return {"seconds": seconds, "bare": self._bare, "calls": self._calls, "ratio": seconds / self._bare}

    @contextmanager
    def _noted(self) -> Iterator[None]:
        own = self._class.forward

        def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            again = [_apart(each) for each in args], {name: _apart(each) for name, each in kwargs.items()}
            self._aside += time.process_time() - began
            output = own(block, *args, **kwargs)
            began = time.process_time()
            self._call(own, self._twins[id(block)], *again)
            self._aside += time.process_time() - began
            return output

        self._class.forward = forward
        try:
            yield
        finally:
            self._class.forward = own

    def _call(self, own: Callable[..., Any], twin: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        inputs = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.requires_grad]
        began = time.process_time()
        try:
            output = own(twin, *args, **kwargs)
        except _ENDS:  # its keys and values were wanted, and no more
            output = None
        output = output[0] if isinstance(output, tuple) else output
        if inputs and output is not None and output.requires_grad:
            torch.autograd.grad(output, inputs, torch.ones_like(output))
        self._calls += 1
        self._bare += time.process_time() - began


_ENDS = (blocks._Known, forward._Stop)
"""What ends a block's run early."""


def _apart(value: Any) -> Any:
    """An argument for the second call: tensors apart from the first one's graph, caches that grow by themselves."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return type(value)(_apart(each) for each in value)
    if hasattr(value, "layers"):  # a cache of Hugging Face
        twin = copy.copy(value)
        twin.layers = [copy.copy(layer) for layer in value.layers]
        return twin
    return copy.copy(value) if hasattr(value, "past_keys") else value
