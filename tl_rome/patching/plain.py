"""Tracing by the definition: every cell is a full forward pass of the base run with some states patched.

Slow, short and obviously right. `incremental` gives the same numbers with a fraction of the work; this is its twin in
the tests and what runs where `incremental` cannot.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from tl_rome.patching.patch import Cell, Patch
from tl_rome.patching.traced_prompt import TracedPrompt
from tl_rome.running.forward import run
from tl_rome.running.hooks import Hooks, hooked


def trace_plain(
    traced: TracedPrompt,
    patch: Patch,
    *,
    max_batch_tokens: int,
    tick: Callable[[], object] = lambda: None,
    positions: Collection[int] | None = None,
) -> Float[Tensor, "cell pos"]:
    """Mean score over samples of every cell at every position.

    Args:
        traced: The prompt and its two runs, with `patch.names`.
        patch: What is patched.
        max_batch_tokens: Bound on rows x positions run at once; at least one cell runs at a time.
        tick: Called after each position.
        positions: Positions to trace, by default all; others keep the score of the base run.
    """
    cells, runs = patch.cells, traced.runs
    n_pos = len(runs.prompt.tokens)
    at_once = max(1, max_batch_tokens // (runs.samples * len(runs.tokens)))
    scores = torch.full((len(cells), n_pos), traced.base_score, dtype=torch.float64)
    for position in range(n_pos):
        here = cells if positions is None or position in positions else []
        for first in range(0, len(here), at_once):
            chunk = here[first : first + at_once]
            tokens, hooks = runs.base_batch(len(chunk))
            with hooked(runs.model, [*hooks, *_patching(traced, patch, chunk, position)]):
                logits = run(runs.model, tokens)[:, -runs.scored :]
            each = traced.metric(logits).cpu().double()
            means = reduce(each, "(cell sample) -> cell", "mean", cell=len(chunk))
            scores[first : first + at_once, position] = means
        tick()
    return scores


def _patching(traced: TracedPrompt, patch: Patch, cells: Sequence[Cell], position: int) -> Hooks:
    """Hooks that patch each cell's rows, and freeze what is severed in all of them."""
    n_pos, recorded = len(traced.runs.tokens), traced.recorded
    hooks = []

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
