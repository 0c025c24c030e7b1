"""Tracing by the definition: every cell is a full forward pass of the base run with some states patched.

Slow, short and obviously right. `sweep` gives the same numbers with a fraction of the work; this is its twin in the
tests and what runs where `sweep` cannot.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.forward import hooked
from tl_rome.patching.metrics import Metric
from tl_rome.patching.patch import Cell, Patch
from tl_rome.patching.runs import Recorded, Runs
from tl_rome.sites import ActivationHook


def trace_plain(
    runs: Runs,
    recorded: Recorded,
    patch: Patch,
    metric: Metric,
    *,
    max_batch_tokens: int,
    tick: Callable[[], object] = lambda: None,
) -> Float[Tensor, "cell pos"]:
    """Mean score over samples of every cell at every position.

    Args:
        runs: The prompt and its corruption.
        recorded: Its two runs, with `patch.names`.
        patch: What is patched.
        metric: Score of the logits.
        max_batch_tokens: Bound on rows x positions run at once; at least one cell runs at a time.
        tick: Called after each position.
    """
    cells, n_pos = patch.cells, len(runs.prompt.tokens)
    together = max(1, max_batch_tokens // (runs.samples * len(runs.tokens)))
    scores = torch.zeros(len(cells), n_pos, dtype=torch.float64)
    for position in range(n_pos):
        for first in range(0, len(cells), together):
            chunk = cells[first : first + together]
            tokens = runs.tokens.repeat(len(chunk) * runs.samples, 1)
            with hooked(runs.model, _hooks(runs, recorded, patch, chunk, position)):
                logits = runs.model(tokens)[:, -runs.scored :]
            scores[first : first + together, position] = metric(logits).cpu().double().view(len(chunk), -1).mean(1)
        tick()
    return scores


def _hooks(
    runs: Runs, recorded: Recorded, patch: Patch, cells: Sequence[Cell], position: int
) -> list[tuple[str, ActivationHook]]:
    n_pos = len(runs.tokens)
    hooks = [*runs.base_hooks(len(cells))]

    def put(patch: Patch, name: str, groups: list[tuple[int, int]], value: Tensor) -> None:
        state = patch.states(value)[:, position]
        hooks.append((name, lambda activation, hook: patch.write(activation, groups, position, state, n_pos)))

    for layer, name in patch.points.items():
        groups = [(group, cell.unit) for group, cell in enumerate(cells) if layer in cell.window]
        if groups:
            put(patch, name, groups, recorded.source(name))
    whole = Patch("frozen", {}, ())
    for name in patch.frozen.values():
        put(whole, name, [(group, 0) for group in range(len(cells))], recorded.base(name))
    return hooks
