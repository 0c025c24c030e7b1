"""One climb of a trace up the layers: a batch of rows that grows as windows begin, branch by branch.

Rows that are patched alike share a branch. What happens at each layer is planned first, so that all indices are on the
device before anything runs there and nothing waits for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.patching.patch import Cell, Patch, Places
from tl_rome.patching.runs import row_scores
from tl_rome.patching.traced_prompt import TracedPrompt
from tl_rome.running.blocks import BlockRunner
from tl_rome.running.hooks import Hooks, hooked
from tl_rome.sites import HookedModel, Site


@dataclass(frozen=True)
class Spot:
    """A cell at a position, counted from the end: 1 is the last."""

    cell: Cell
    carried: int
    """The position, and those after it."""


@dataclass
class _Branch:
    """Rows that several spots share as long as their windows agree."""

    spots: list[int]
    start: int
    unit: int
    carried: int
    stop: int = 0
    """First layer that is no longer patched."""


@dataclass(frozen=True)
class _Step:
    """What happens at one layer."""

    layer: int
    joining: list[_Branch]
    """Those that start before the layer is run."""
    copied: list[int]
    """Then: those of which some spots leave, because their windows end below; the copies come last."""
    patched: list[tuple[int, _Branch]]
    """Branches whose window covers the layer, by their places in the batch."""
    count: int
    """Branches that are run."""


def _plan(spots: Sequence[Spot], joins_after: int, n_layers: int) -> tuple[list[_Step], list[_Branch]]:
    """The steps of a climb, and the branches in the order in which they end up in the batch."""
    waiting: dict[tuple[int, int, int], _Branch] = {}
    for index, spot in enumerate(spots):
        start = spot.cell.window.start, spot.cell.unit, spot.carried
        branch = waiting.setdefault(start, _Branch([], *start))
        branch.spots.append(index)
        branch.stop = max(branch.stop, spot.cell.window.stop)
    steps, branches = list[_Step](), list[_Branch]()
    for layer in range(min(branch.start for branch in waiting.values()) + joins_after, n_layers + 1):
        joining = [branch for branch in waiting.values() if branch.start + joins_after == layer]
        branches += joining
        copied = []
        for index, branch in enumerate(list(branches)):
            ended = [spot for spot in branch.spots if spots[spot].cell.window.stop == layer]
            if ended and len(ended) < len(branch.spots):
                branch.spots = [spot for spot in branch.spots if spot not in ended]
                branches.append(_Branch(ended, branch.start, branch.unit, branch.carried, layer))
                copied.append(index)
        patched = [(index, branch) for index, branch in enumerate(branches) if layer < branch.stop]
        steps.append(_Step(layer, joining, copied, patched, len(branches)))
    return steps, branches


@dataclass
class _Writing:
    """Where the hooks of a climb write in the block that is run."""

    n_pos: int
    """Positions that it is run on."""
    patched: Places | None = None
    frozen: Places | None = None


@dataclass(frozen=True, eq=False)
class SpotScores:
    """What some spots scored in one prompt."""

    prompt: int
    rows: Float[Tensor, "metrics rows"]
    """Scores of the rows of all branches by each metric, samples innermost, on the model's device."""
    branch: list[int]
    """Of each spot."""


class Climb:
    """The ways up from some positions, counted from the end, in one or several prompts.

    Args:
        traced: The prompts and their runs, with keys and values.
        patch: What is patched.
        carried: Positions that rows carry, at the end of each prompt; no spot carries more.
        joins_after: 1 where a branch can join above its first patched layer, 0 where it joins below.

    Raises:
        UnsupportedModelError: If the model's blocks cannot be run one by one.
    """

    def __init__(self, traced: Sequence[TracedPrompt], patch: Patch, carried: int, joins_after: int) -> None:
        self._traced, self._patch, self._carried, self._joins_after = traced, patch, carried, joins_after
        self._runs = runs = [one.runs for one in traced]
        self._model, self._device = runs[0].model, runs[0].tokens.device
        self._n_layers, self._stream = self._model.cfg.n_layers, stream(self._model)
        self.samples = sum(run.samples for run in runs)
        """Rows of a branch."""
        self._scored = max(run.scored for run in runs)
        longest = max(len(run.tokens) for run in runs)
        missing = [longest - len(run.tokens) for run in runs]
        tokens = torch.stack(
            [torch.nn.functional.pad(run.tokens, (gap, 0)) for run, gap in zip(runs, missing, strict=True)]
        )
        padding = torch.tensor(missing, device=self._device) if any(missing) else None
        self._runner = BlockRunner(self._model, tokens, longest - carried, padding)
        self._tail = None
        if carried > self._scored:
            self._tail = BlockRunner(self._model, tokens, longest - self._scored, padding)
        owners = [prompt for prompt, run in enumerate(runs) for _ in range(run.samples)]
        self._prompt_of = torch.tensor(owners, device=self._device) if len(runs) > 1 else None
        cached = [one.recorded.cached for one in traced]
        self._past = [
            self._runner.align([one.recorded.attended(layer) for one in traced], missing)
            for layer in range(len(cached[0]))
        ]

    def check(self) -> None:
        """Make sure that running block by block gives what the model itself computed, for each prompt's first sample.

        Raises:
            UnsupportedModelError: If it does not.
        """
        *firsts, _ = accumulate((run.samples for run in self._runs), initial=0)
        rows = torch.tensor(firsts * 2 if len(firsts) == 1 else firsts, device=self._device)  # a climb runs several
        bottom, *_, top = (self._at(name, base=True)[rows] for name in self._stream)
        self._runner.check(bottom, [(keys[rows], values[rows]) for keys, values in self._past], top)

    def __call__(self, spots: Sequence[Spot]) -> list[SpotScores]:
        """Scores of some spots in each prompt, windows that start first given first."""
        steps, branches = _plan(spots, self._joins_after, self._n_layers)
        joining, patched, everywhere, tail, last = self._places(steps, branches)
        writing, resid = _Writing(self._carried), None
        with hooked(self._model, self._hooks(steps, writing)):
            for step, joins, writes in zip(steps, joining, patched, strict=True):
                if step.joining:
                    fresh = self._enter(step, joins)
                    resid = fresh if resid is None else torch.cat([resid, fresh[:, :, -resid.shape[2] :]])
                assert resid is not None
                if step.copied:
                    resid = torch.cat([resid, *(resid[index, None] for index in step.copied)])
                if step.layer == self._n_layers:
                    break
                writing.patched, writing.frozen = writes, everywhere[:, : step.count]
                if step.layer < self._n_layers - 1 or self._tail is None:
                    resid = self._run(step.layer, resid)
                else:
                    resid = self._finish(step.layer, resid, writing, tail, last)
        assert resid is not None
        branch_of = {spot: index for index, branch in enumerate(branches) for spot in branch.spots}
        return self._scores(resid[:, :, -self._scored :], [branch_of[spot] for spot in range(len(spots))])

    def _places(
        self, steps: Sequence[_Step], branches: Sequence[_Branch]
    ) -> tuple[list[Places], list[Places], Places, Places, Places]:
        """All indices of a climb, moved to the device in one go.

        Returns:
            Of each step the branches that join, among themselves, and those that are patched; all branches; and, in a
            run of the scored positions alone, those of the last layer's patched ones, and of all, whose position that
            is.
        """

        def places(branches: Sequence[tuple[int, _Branch]], positions: int) -> list[tuple[int, int, int]]:
            return [(index, positions - each.carried, each.unit) for index, each in branches]

        below = steps[-2:-1]  # of the last block, above which there is one more step
        final = [(index, each) for step in below for index, each in step.patched if each.carried <= self._scored]
        run = [pair for step in below for pair in enumerate(branches[: step.count]) if pair[1].carried <= self._scored]
        lists = [
            *(places(list(enumerate(step.joining)), self._carried) for step in steps),
            *(places(step.patched, self._carried) for step in steps),
            places(list(enumerate(branches)), self._carried),
            places(final, self._scored),
            places(run, self._scored),
        ]
        # Without waiting for the climb before this one, which the device may still be at.
        moved = torch.tensor([place for each in lists for place in each]).T.to(self._device, non_blocking=True)
        *parts, everywhere, tail, last = moved.split([len(each) for each in lists], dim=1)
        return parts[: len(steps)], parts[len(steps) :], everywhere, tail, last

    def _at(self, name: str, *, base: bool) -> Float[Tensor, "samples pos ..."]:
        """An activation at the carried positions, every prompt's samples below one another."""
        recorded = [one.recorded for one in self._traced]
        parts = [record.base(name) if base else record.source(name) for record in recorded]
        if name in self._patch.points.values():
            parts = [self._patch.states(part) for part in parts]
        if len({part.shape[2:] for part in parts}) > 1:
            raise UnsupportedModelError(f"{name} has other features for prompts of another length")
        carried = [part[:, -self._carried :] for part in parts]
        return carried[0] if len(carried) == 1 else torch.cat(carried)

    def _enter(self, step: _Step, places: Places) -> Float[Tensor, "joining samples pos d_model"]:
        """Residual streams with which branches join."""
        base = self._at(self._stream[step.layer], base=True)
        resid = base.repeat(len(step.joining), 1, 1, 1)
        if self._joins_after:
            name = self._patch.points[step.layer - 1]
            state = self._at(name, base=False)
            if self._patch.component != "resid_post":
                state = base + (state - self._at(name, base=True))
            self._patch.put(resid, places, state)
        return resid

    def _run(self, layer: int, resid: Tensor) -> Float[Tensor, "branches samples pos d_model"]:
        """One block for all rows."""
        output = self._runner(layer, resid.flatten(0, 1), self._past[layer], self._prompts(len(resid)))
        return output.unflatten(0, (len(resid), -1))

    def _finish(
        self, layer: int, resid: Tensor, writing: _Writing, patched: Places, frozen: Places
    ) -> Float[Tensor, "branches samples scored d_model"]:
        """The last block for the scored positions only; the others give it their keys and values."""
        assert self._tail is not None
        rows, prompts = resid.flatten(0, 1), self._prompts(len(resid))
        joined = self._runner.attended(layer, rows, self._past[layer], prompts)
        writing.n_pos, writing.patched, writing.frozen = self._scored, patched, frozen
        output = self._tail(layer, rows[:, -self._scored :], self._tail.crop(joined), prompts)
        return output.unflatten(0, (len(resid), -1))

    def _prompts(self, branches: int) -> Int[Tensor, " rows"] | None:
        """Which prompt each row belongs to."""
        return None if self._prompt_of is None else self._prompt_of.repeat(branches)

    def _scores(self, resid: Float[Tensor, "branches samples scored d"], branch: list[int]) -> list[SpotScores]:
        parts = resid.split([run.samples for run in self._runs], dim=1)
        return [
            SpotScores(
                prompt, row_scores(self._model, one.metrics, part[:, :, -one.runs.scored :].flatten(0, 1)), branch
            )
            for prompt, (one, part) in enumerate(zip(self._traced, parts, strict=True))
        ]

    def _hooks(self, steps: Sequence[_Step], writing: _Writing) -> Hooks:
        """Hooks that patch and freeze what `writing` says when they are called; it changes from layer to layer."""
        hooks = []

        def put(patch: Patch, name: str, value: Tensor, where: Callable[[], Places | None]) -> None:
            def hook_function(activation: Tensor, hook: object) -> Tensor:
                places = where()
                if places is None or not places.shape[1]:
                    return activation
                return patch.write(activation, places, value, writing.n_pos)

            hooks.append((name, hook_function))

        for layer in (step.layer for step in steps if step.patched and step.layer in self._patch.points):
            name = self._patch.points[layer]
            put(self._patch, name, self._at(name, base=False), lambda: writing.patched)
        whole = Patch("frozen", {}, ())
        for name in self._patch.frozen.values():
            put(whole, name, self._at(name, base=True), lambda: writing.frozen)
        return hooks


def stream(model: HookedModel) -> list[str]:
    """The residual stream below the first block and after each block."""
    return [Site("resid_pre", 0).hook, *(Site("resid_post", layer).hook for layer in range(model.cfg.n_layers))]
