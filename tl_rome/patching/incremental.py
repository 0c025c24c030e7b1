"""Tracing with nothing computed twice: one climb up the layers per position.

Patching a state at layer l and position t leaves everything below l and everything before t as in the base run. So for
each t one batch climbs the layers, carrying only positions from t on; the attention keys and values of earlier
positions come from the recorded base run. Further savings, all exact:

- A cell joins the batch at the first layer that its window patches, starting from the base run. Where a block's output
  is a sum (hidden states, MLP outputs), its first patched layer need not be run at all.
- Windows that start together (those clipped at the bottom) share one branch until the shorter ones end.
- Of the last layer, only the scored positions are run; the others give it their keys and values.
- Positions before the subject are not run: there the two runs are equal, and patching changes nothing.

Several prompts climb together, aligned at their ends by padding on the left, which keeps a large device busy. Equal to
`plain` to float tolerance, by test on every family.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.patching.patch import Cell, Patch
from tl_rome.patching.runs import Recorded, mean_scores
from tl_rome.patching.traced_prompt import TracedPrompt
from tl_rome.running.blocks import BlockRunner, first_run
from tl_rome.running.hooks import Hooks, hooked
from tl_rome.sites import HookedModel, Site, hook_points

_ADDED = ("resid_post", "mlp_out")
"""Components whose patch changes the block's output by just their own change, at their own position."""
_SUM_TOLERANCE = 0.02
"""Relative error that rounding alone may leave in a sum of three components, in bfloat16 too."""


def needed_names(model: HookedModel, patch: Patch) -> list[str]:
    """Hook points that must be known of the two runs.

    Raises:
        UnsupportedModelError: If the model lacks one of the residual stream.
    """
    layers = range(model.cfg.n_layers)
    parts = [Site("attn_out", layer).hook for layer in layers] if patch.component == "mlp_out" else []
    known = hook_points(model)
    if missing := [name for name in _stream(model) if name not in known]:
        raise UnsupportedModelError(f"this model has no hook points {', '.join(missing[:3])}")
    return [*patch.names, *_stream(model), *(name for name in parts if name in known)]


def _stream(model: HookedModel) -> list[str]:
    """The residual stream below the first block and after each block."""
    return [Site("resid_pre", 0).hook, *(Site("resid_post", layer).hook for layer in range(model.cfg.n_layers))]


def _joins_after(model: HookedModel, recorded: Recorded, patch: Patch) -> bool:
    """Whether cells can join above their first patched layer, because its output is a sum that they change."""
    if patch.component != "mlp_out":
        return patch.component == "resid_post"
    stream = _stream(model)
    for layer in range(model.cfg.n_layers):
        parts = [stream[layer], Site("attn_out", layer).hook, Site("mlp_out", layer).hook]
        if not recorded.found.keys() >= set(parts):
            return False
        total = sum(recorded.found[name].float() for name in parts)
        after = recorded.found[stream[layer + 1]].float()
        if (total - after).norm() > _SUM_TOLERANCE * after.norm():
            return False
    return True


def trace_incremental(
    traced: Sequence[TracedPrompt],
    patch: Patch,
    *,
    max_batch_tokens: int,
    tick: Callable[[], object] = lambda: None,
    positions: Collection[int] | None = None,
) -> list[Float[Tensor, "cell pos"]]:
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
    model, all_cells = traced[0].runs.model, patch.cells
    cells = sorted(range(len(all_cells)), key=lambda cell: all_cells[cell].window.start)
    scores = [
        torch.full((len(cells), len(one.runs.prompt.tokens)), one.base_score, dtype=torch.float64) for one in traced
    ]
    joins_after = _joins_after(model, traced[0].recorded, patch)
    checked: set[int] = set()
    for carried in range(max(len(one.runs.tokens) for one in traced), 0, -1):
        inside = [index for index, one in enumerate(traced) if _is_traced(one, carried, positions)]
        if inside:
            with nullcontext() if checked else first_run():
                column = _Column([traced[index] for index in inside], patch, carried, int(joins_after))
                if not checked.issuperset(inside):
                    column.check()
                    checked.update(inside)
            at_once = max(1, max_batch_tokens // (carried * column.samples))
            for first in range(0, len(cells), at_once):
                chunk = cells[first : first + at_once]
                final = column.climb([all_cells[cell] for cell in chunk])
                for index, rows in zip(inside, column.by_prompt(final), strict=True):
                    position = len(traced[index].runs.tokens) - carried
                    scores[index][chunk, position] = mean_scores(model, traced[index].metric, rows)
        tick()
    return scores


def _is_traced(one: TracedPrompt, carried: int, positions: Collection[int] | None) -> bool:
    """Whether the first of the carried positions is wanted and, patched, can change the prompt's score."""
    runs, position = one.runs, len(one.runs.tokens) - carried
    inside = runs.span.start <= position < len(runs.prompt.tokens)
    return inside and (positions is None or position in positions)


@dataclass
class _Branch:
    """Rows that several cells share as long as their windows agree."""

    cells: list[int]
    start: int
    unit: int
    stop: int = 0
    """First layer that is no longer patched."""


@dataclass
class _Writing:
    """Where the hooks of one climb write at the layer that is run: index and unit of branches."""

    patched: list[tuple[int, int]] = field(default_factory=list)
    """Branches whose window covers the layer."""
    frozen: list[tuple[int, int]] = field(default_factory=list)
    """Branches in which what is severed is kept; each with a 0 that stands for all features."""


class _Column:
    """The cells of one position, counted from the end, in one or several prompts: a batch that grows as it climbs."""

    def __init__(self, traced: Sequence[TracedPrompt], patch: Patch, carried: int, joins_after: int) -> None:
        self.runs, self.recorded = [one.runs for one in traced], [one.recorded for one in traced]
        runs = self.runs
        self.model, self.patch, self.carried, self.joins_after = runs[0].model, patch, carried, joins_after
        self.n_layers, self._stream = self.model.cfg.n_layers, _stream(self.model)
        self.samples = sum(run.samples for run in runs)
        self.scored = max(run.scored for run in runs)
        self.longest = max(len(run.tokens) for run in runs)
        missing = [self.longest - len(run.tokens) for run in runs]
        tokens = torch.stack(
            [torch.nn.functional.pad(run.tokens, (gap, 0)) for run, gap in zip(runs, missing, strict=True)]
        )
        padding = torch.tensor(missing, device=tokens.device)
        self.runner = BlockRunner(self.model, tokens, self.longest - carried, padding)
        self.tail = None
        if carried > self.scored:
            self.tail = BlockRunner(self.model, tokens, self.longest - self.scored, padding)
        counts = torch.tensor([run.samples for run in runs], device=tokens.device)
        self.prompt_of = torch.repeat_interleave(torch.arange(len(runs), device=tokens.device), counts)
        self.past = [
            self.runner.align([record.attended(layer) for record in self.recorded], missing)
            for layer in range(self.n_layers)
        ]
        self.source = {layer: self._at(name, base=False)[:, 0] for layer, name in patch.points.items()}
        self.kept = {name: self._at(name, base=True)[:, 0] for name in patch.frozen.values()}

    def _at(self, name: str, *, base: bool) -> Float[Tensor, "samples pos ..."]:
        """An activation at the carried positions, every prompt's samples below one another."""
        parts = [record.base(name) if base else record.source(name) for record in self.recorded]
        kind = self.patch if name in self.patch.points.values() else None
        parts = [part if kind is None else kind.states(part) for part in parts]
        if len({part.shape[2:] for part in parts}) > 1:
            raise UnsupportedModelError(f"{name} has other features for prompts of another length")
        return torch.cat([part[:, -self.carried :] for part in parts])

    def check(self) -> None:
        """Make sure that running block by block gives what the model itself computed, for each prompt's first sample.

        Raises:
            UnsupportedModelError: If it does not.
        """
        firsts = torch.tensor([int((self.prompt_of == prompt).nonzero()[0]) for prompt in range(len(self.runs))])
        if len(firsts) == 1:
            firsts = firsts.repeat(2)  # a climb runs several rows by what was noted of one
        bottom, *_, top = (self._at(name, base=True)[firsts] for name in self._stream)
        past = [(keys[firsts], values[firsts]) for keys, values in self.past]
        self.runner.check(bottom, past, top)

    def by_prompt(
        self, final: Float[Tensor, "cells samples scored d_model"]
    ) -> list[Float[Tensor, "cells one scored d_model"]]:
        """Each prompt's own rows and scored positions."""
        parts = final.split([run.samples for run in self.runs], dim=1)
        return [part[:, :, -run.scored :] for part, run in zip(parts, self.runs, strict=True)]

    def climb(self, cells: Sequence[Cell]) -> Float[Tensor, "cells samples scored d_model"]:
        """Final residual stream of every cell's rows, at the scored positions."""
        branches: list[_Branch] = []
        waiting = _shared(cells)
        resid: Tensor | None = None
        writing = _Writing()
        with hooked(self.model, self._hooks(writing)):
            for layer in range(min(branch.start for branch in waiting) + self.joins_after, self.n_layers + 1):
                joining = [branch for branch in waiting if branch.start + self.joins_after == layer]
                if joining:
                    fresh = torch.stack([self._entry(branch, layer) for branch in joining])
                    resid = fresh if resid is None else torch.cat([resid, fresh[:, :, -resid.shape[2] :]])
                    branches += joining
                assert resid is not None
                resid = self._fork(branches, cells, resid, layer)
                if layer == self.n_layers:
                    break
                writing.patched = [(index, branch.unit) for index, branch in enumerate(branches) if layer < branch.stop]
                writing.frozen = [(index, 0) for index in range(len(branches))]
                resid = self._run(layer, resid, writing)
        assert resid is not None
        rows = {cell: index for index, branch in enumerate(branches) for cell in branch.cells}
        return resid[[rows[cell] for cell in range(len(cells))], :, -self.scored :]

    def _fork(self, branches: list[_Branch], cells: Sequence[Cell], resid: Tensor, layer: int) -> Tensor:
        """Let the cells whose windows end below this layer leave branches that go on being patched."""
        copies = []
        for index, branch in enumerate(list(branches)):
            ended = [cell for cell in branch.cells if cells[cell].window.stop == layer]
            if ended and len(ended) < len(branch.cells):
                branch.cells = [cell for cell in branch.cells if cell not in ended]
                branches.append(_Branch(ended, branch.start, branch.unit, layer))
                copies.append(index)
        return torch.cat([resid, resid[copies]]) if copies else resid

    def _run(
        self, layer: int, resid: Float[Tensor, "branches samples pos d_model"], writing: _Writing
    ) -> Float[Tensor, "branches samples more d_model"]:
        """One block for all rows; the last one for the scored positions only, and for nothing that is patched there."""
        count = len(resid)
        past = self.past[layer]
        keys, values = (repeat(part, "sample ... -> (branch sample) ...", branch=count) for part in past)
        rows = rearrange(resid, "branch sample pos d -> (branch sample) pos d")
        prompts = repeat(self.prompt_of, "sample -> (branch sample)", branch=count)
        if layer < self.n_layers - 1 or self.tail is None:
            output = self.runner(layer, rows, (keys, values), prompts)
        else:
            joined = self.runner.attended(layer, rows, (keys, values), prompts)
            writing.patched, writing.frozen = [], []
            output = self.tail(layer, rows[:, -self.scored :], self.tail.crop(joined), prompts)
        return rearrange(output, "(branch sample) pos d -> branch sample pos d", branch=count)

    def _entry(self, branch: _Branch, layer: int) -> Float[Tensor, "samples pos d_model"]:
        """Residual stream with which a branch joins before `layer`."""
        resid = self._at(self._stream[layer], base=True).clone()
        if self.joins_after:
            name = self.patch.points[branch.start]
            unit = slice(None) if self.patch.units is None else self.patch.units[branch.unit]
            change = self.source[branch.start] - self._at(name, base=True)[:, 0]
            if self.patch.component == "resid_post":
                resid[:, 0, unit] = self.source[branch.start][:, unit]
            else:
                resid[:, 0, unit] += change[:, unit]
        return resid

    def _hooks(self, writing: _Writing) -> Hooks:
        """Hooks that patch and freeze what `writing` says when they are called; it changes from layer to layer."""
        hooks = []

        def put(patch: Patch, name: str, value: Tensor, groups: Callable[[], list[tuple[int, int]]]) -> None:
            def hook_function(activation: Tensor, hook: object) -> Tensor:
                chosen = groups()
                return patch.write(activation, chosen, 0, value, self.carried) if chosen else activation

            hooks.append((name, hook_function))

        for layer, name in self.patch.points.items():
            put(self.patch, name, self.source[layer], lambda: writing.patched)
        whole = Patch("frozen", {}, ())
        for name, value in self.kept.items():
            put(whole, name, value, lambda: writing.frozen)
        return hooks


def _shared(cells: Sequence[Cell]) -> list[_Branch]:
    """One branch for all cells that start together with the same unit."""
    branches: dict[tuple[int, int], _Branch] = {}
    for index, cell in enumerate(cells):
        branch = branches.setdefault((cell.window.start, cell.unit), _Branch([], cell.window.start, cell.unit))
        branch.cells.append(index)
        branch.stop = max(branch.stop, cell.window.stop)
    return list(branches.values())
