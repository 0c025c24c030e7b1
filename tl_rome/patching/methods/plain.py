"""Tracing by the definition: every cell is a full forward pass of the base run with some states patched.

Slow, short and obviously right. `incremental` gives the same numbers with a fraction of the work; this is its twin in
the tests and what runs where `incremental` cannot.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from tl_rome.patching.patch import Cell, Patch
from tl_rome.patching.runs import metric_scores
from tl_rome.patching.traced_prompt import TracedPrompt
from tl_rome.running.forward import run
from tl_rome.running.hooks import Hooks, hooked
from tl_rome.running.memory import Halving


def trace_plain(
    traced: TracedPrompt,
    patch: Patch,
    *,
    max_batch_tokens: int,
    tick: Callable[[], object] = lambda: None,
    positions: Collection[int] | None = None,
) -> Float[Tensor, "metrics cell pos"]:
    """Mean score over samples of every cell at every position, by each metric.

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
    wanted = [position for position in range(n_pos) if positions is None or position in positions]
    halving, found = Halving("cells"), list[Tensor]()
    for position in range(n_pos):
        score = partial(_score, traced, patch, position)
        for first in range(0, len(cells) if position in wanted else 0, at_once):
            found += [each for _, each in halving(cells[first : first + at_once], score)]
        tick()
    tables = traced.base_table(len(cells))
    if found:
        read = torch.cat(found, dim=1).cpu().double()  # nothing waited before
        for table, each in zip(tables, read, strict=True):
            table[:, wanted] = reduce(each, "(pos cell sample) -> cell pos", "mean", pos=len(wanted), cell=len(cells))
    return tables


def _score(traced: TracedPrompt, patch: Patch, position: int, cells: Sequence[Cell]) -> Float[Tensor, "metrics rows"]:
    """Scores of some cells' rows by each metric, on the model's device."""
    runs = traced.runs
    tokens, hooks = runs.base_batch(len(cells))
    with hooked(runs.model, [*hooks, *_patching(traced, patch, cells, position)]):
        return metric_scores(traced.metrics, run(runs.model, tokens)[:, -runs.scored :])


def _patching(traced: TracedPrompt, patch: Patch, cells: Sequence[Cell], position: int) -> Hooks:
    """Hooks that patch each cell's rows, and freeze what is severed in all of them."""
    n_pos, recorded = len(traced.runs.tokens), traced.recorded
    hooks = []

    def put(patch: Patch, name: str, places: list[tuple[int, int, int]], value: Tensor) -> None:
        where, state = torch.tensor(places).T.to(value.device), patch.states(value)
        hooks.append((name, lambda activation, hook: patch.write(activation, where, state, n_pos)))

    for layer, name in patch.points.items():
        places = [(group, position, cell.unit) for group, cell in enumerate(cells) if layer in cell.window]
        if places:
            put(patch, name, places, recorded.source(name))
    whole = Patch("frozen", {}, ())
    for name in patch.frozen.values():
        put(whole, name, [(group, position, 0) for group in range(len(cells))], recorded.base(name))
    return hooks
