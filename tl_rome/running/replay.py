"""Steps that are alike but for the numbers in their tensors: recorded once on a CUDA device and replayed from then on.

A step of v* is a few thousand small kernels, which a GPU runs faster than Python starts them. A CUDA graph starts all
of them at once. It reads and writes the memory that it was recorded with, so what changes between steps has to change
in place; and whatever is asked of the CPU in the recorded code happens once, at recording.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


class Replay:
    """Calls a step, as a recorded graph from the second call on where the device has graphs.

    Args:
        step: Gives tensors on the device, of the same shapes at every call; reads only memory that stays where it is.
        recorded: Whether it works on a device that has graphs: `Tensor.is_cuda` of what it works on.
    """

    def __init__(self, step: Callable[[], tuple[Tensor, ...]], recorded: bool) -> None:
        self._step, self._on_graphs = step, recorded
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[Tensor, ...] = ()
        self._calls = 0

    def __call__(self) -> tuple[Tensor, ...]:
        """What the step gives; of a replayed one, valid until the next call."""
        self._calls += 1
        if self._on_graphs and self._graph is None and self._calls > 1:
            self._record()
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._results

    def forget(self) -> None:
        """Begin anew: the step has other shapes, or other memory, from now on."""
        self._graph, self._results, self._calls = None, (), 0

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = self._step()
        except RuntimeError as error:  # a model's own code waits for the device, say
            self._on_graphs = False
            _log.info("steps cannot be recorded (%s); starting their kernels one by one", str(error).split("\n")[0])
        else:
            self._graph, self._results = graph, results
