"""Tracing with nothing computed twice: one climb up the layers per position.

Patching a state at layer l and position t leaves everything below l and everything before t as in the base run. So for
each t one batch climbs the layers, carrying only positions from t on; the attention keys and values of earlier
positions come from the recorded base run. Further savings, all exact:

- A cell joins the batch at the first layer that its window patches, starting from the base run. Where a block's output
  is a sum (hidden states, MLP outputs), its first patched layer need not be run at all.
- Windows that start together (those clipped at the bottom) share one branch until the shorter ones end.
- Of the last layer, only the scored positions are run; the others give it their keys and values.
- Positions before the subject are not run: there the two runs are equal, and patching changes nothing.

Where a call of a block takes longer than its arithmetic, as with few rows or on a fast device, several positions climb
together: all rows then carry the positions of the first of them.

Several prompts climb together, aligned at their ends by padding on the left, which keeps a large device busy. Equal to
`plain` to float tolerance, by test on every family.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.patching.methods.climb import Climb, Spot, SpotScores, stream
from tl_rome.patching.patch import Patch
from tl_rome.patching.runs import Recorded
from tl_rome.patching.traced_prompt import TracedPrompt
from tl_rome.running.blocks import first_run
from tl_rome.running.forward import device_of
from tl_rome.running.memory import Halving
from tl_rome.sites import HookedModel, Site, hook_points

_ADDED = ("resid_post", "mlp_out")
"""Components whose patch changes the block's output by just their own change, at their own position."""
_SUM_TOLERANCE = 0.02
"""Relative error that rounding alone may leave in a sum of three components, in bfloat16 too."""
_CALL, _CALL_ELSEWHERE = 1e7, 2e10
"""FLOP that take less time than a call of a block, on a CPU (where a deep thin model gains most) and elsewhere."""


def needed_names(model: HookedModel, patch: Patch) -> list[str]:
    """Hook points that must be known of the two runs.

    Raises:
        UnsupportedModelError: If the model lacks one of the residual stream.
    """
    layers = range(model.cfg.n_layers)
    parts = [Site("attn_out", layer).hook for layer in layers] if patch.component == "mlp_out" else []
    known = hook_points(model)
    if missing := [name for name in stream(model) if name not in known]:
        raise UnsupportedModelError(f"this model has no hook points {', '.join(missing[:3])}")
    return [*patch.names, *stream(model), *(name for name in parts if name in known)]


def _joins_after(model: HookedModel, recorded: Recorded, patch: Patch) -> bool:
    """Whether cells can join above their first patched layer, because its output is a sum that they change."""
    if patch.component != "mlp_out":
        return patch.component == "resid_post"
    residuals, errors = stream(model), []
    for layer in range(model.cfg.n_layers):
        parts = [residuals[layer], Site("attn_out", layer).hook, Site("mlp_out", layer).hook]
        if not recorded.found.keys() >= set(parts):
            return False
        total = sum(recorded.found[name].float() for name in parts)
        after = recorded.found[residuals[layer + 1]].float()
        errors.append((total - after).norm() / after.norm())
    return bool((torch.stack(errors) <= _SUM_TOLERANCE).all())


def trace_incremental(
    traced: Sequence[TracedPrompt],
    patch: Patch,
    *,
    max_batch_tokens: int,
    tick: Callable[[], object] = lambda: None,
    positions: Collection[int] | None = None,
) -> list[Float[Tensor, "metrics cell pos"]]:
    """As `trace_plain`, for several prompts at once.

    Args:
        traced: The prompts and their runs, with keys and values and `needed_names`.
        patch: What is patched; its hook points must lie in blocks.
        max_batch_tokens: Bound on rows x positions run at once; at least one cell of every prompt runs at a time.
        tick: Called after each column, of which there are as many as the longest prompt has positions.
        positions: Positions to trace, by default all; others keep the score of the base run.

    Raises:
        UnsupportedModelError: If the model's blocks cannot be run one by one, or the hook point shows other positions.
    """
    cells = patch.cells
    order = sorted(range(len(cells)), key=lambda cell: cells[cell].window.start)
    joins_after = int(_joins_after(traced[0].runs.model, traced[0].recorded, patch))
    checked, halving, found = set[int](), Halving("cells"), list[_Found]()
    for inside, columns in grouped_columns(traced, patch, max_batch_tokens, positions):
        if inside:
            with nullcontext() if checked else first_run():
                climb = Climb([traced[index] for index in inside], patch, columns[0], joins_after)
                if not checked.issuperset(inside):
                    climb.check()
                    checked.update(inside)
            spots = [(cell, carried) for cell in order for carried in columns]
            at_once = max(1, max_batch_tokens // (columns[0] * climb.samples))

            def score(part: Sequence[tuple[int, int]], climb: Climb = climb) -> list[SpotScores]:
                return climb([Spot(cells[cell], carried) for cell, carried in part])

            for first in range(0, len(spots), at_once):
                for part, scores in halving(spots[first : first + at_once], score):
                    found += [(inside[each.prompt], part, each) for each in scores]
        for _ in columns:
            tick()
    return _read(traced, found, len(cells))


_Found = tuple[int, Sequence[tuple[int, int]], SpotScores]
"""A prompt, the cells and columns that were scored in it, and their scores."""


def _read(
    traced: Sequence[TracedPrompt], found: Sequence[_Found], cells: int
) -> list[Float[Tensor, "metrics cell pos"]]:
    """Each prompt's mean scores by each metric, in float64, on the CPU. Nothing waited for the device before."""
    tables = [one.base_table(cells) for one in traced]
    rows = [each.rows for _, _, each in found]
    read = torch.cat(rows, dim=1).cpu().double().split([each.shape[1] for each in rows], dim=1) if rows else ()
    for (prompt, spots, scores), values in zip(found, read, strict=True):
        runs = traced[prompt].runs
        cell, carried = torch.tensor(spots).T
        for table, each in zip(tables[prompt], values, strict=True):  # each as if it were the only one, to the last bit
            means = each.unflatten(0, (-1, runs.samples)).mean(1)
            table[cell, len(runs.tokens) - carried] = means[scores.branch]
    return tables


def grouped_columns(
    traced: Sequence[TracedPrompt], patch: Patch, max_batch_tokens: int, positions: Collection[int] | None = None
) -> list[tuple[list[int], list[int]]]:
    """Prompts, and columns that climb together in them: each given by how many positions it carries, the most first.

    All carry as many as the first, which for the others are more than they need. So one joins if that takes less
    arithmetic than fits in the time of a call of a block, which it saves at every layer.
    """
    model, cfg, samples = traced[0].runs.model, traced[0].runs.model.cfg, sum(one.runs.samples for one in traced)
    branches = len({(cell.window.start, cell.unit) for cell in patch.cells})
    weights = cfg.d_model * (4 * cfg.n_heads * cfg.d_head + 3 * (cfg.d_mlp or 4 * cfg.d_model))
    position = 2 * weights * samples * max(1, branches // 2)  # FLOP of a block for one; half have joined on average
    call = _CALL if device_of(model).type == "cpu" else _CALL_ELSEWHERE
    groups: list[tuple[list[int], list[int]]] = []
    for carried in range(max(len(one.runs.tokens) for one in traced), 0, -1):
        inside = [index for index, one in enumerate(traced) if _is_traced(one, carried, positions)]
        if groups and groups[-1][0] == inside:
            columns = groups[-1][1]
            tokens = len(patch.cells) * samples * columns[0] * (len(columns) + 1)
            if not inside or (tokens <= max_batch_tokens and (columns[0] - carried) * position <= call):
                columns.append(carried)
                continue
        groups.append((inside, [carried]))
    return groups


def _is_traced(one: TracedPrompt, carried: int, positions: Collection[int] | None) -> bool:
    """Whether the first of the carried positions is wanted and, patched, can change the prompt's score."""
    runs, position = one.runs, len(one.runs.tokens) - carried
    inside = runs.span.start <= position < len(runs.prompt.tokens)
    return inside and (positions is None or position in positions)
