"""Tracing with nothing computed twice: one sweep up the layers per position.

Restoring a state at layer l and position t leaves everything below l and everything before t as in the corrupted run.
So for each t one batch climbs the layers, carrying only positions from t on; the attention keys and values of earlier
positions come from the recorded corrupted run. A cell's rows (one per noise sample) join the batch at the first layer
its window restores, starting from the corrupted residual stream there, and are patched while the window lasts.
Positions before the subject are not run at all: there the corrupted run equals the clean one, and restoring changes
nothing.

Equal to `plain` to float tolerance, by test on every family.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.blocks import BlockRunner
from tl_rome.forward import Attended, device_of, final_logits, last_resid
from tl_rome.patching.runs import Metric, Runs
from tl_rome.sites import ActivationHook, HookedModel, Site

SWEPT = ("resid_post", "mlp_out", "attn_out")
"""Components that a sweep can restore; any other goes the plain way."""


def trace_sweep(
    runs: Runs, component: str, windows: Sequence[range], metric: Metric, *, max_rows: int, tick=lambda: None
) -> Float[Tensor, "layer pos"]:
    """As `trace_plain`, for the components in `SWEPT`.

    Raises:
        UnsupportedModelError: If the model's blocks cannot be run one by one.
    """
    model = runs.model
    clean = runs.clean(component)
    corrupted, attended = runs.corrupted(["resid_pre", "resid_post"])
    bottom, top = Site("resid_pre", 0).hook, last_resid(model)
    tokens = runs.prompt.tokens[None].to(device_of(model))
    together = max(1, max_rows // runs.samples)
    baseline = metric(final_logits(model, corrupted[top][:, -1])).double().mean().item()
    scores = torch.full((len(windows), tokens.shape[1]), baseline, dtype=torch.float64)
    for position in range(tokens.shape[1]):
        if position >= runs.span.start:
            runner = BlockRunner(model, tokens, position)
            if position == runs.span.start:
                first_row = [(keys[:1], values[:1]) for keys, values in attended]
                runner.check(corrupted[bottom][:1, position:], first_row, corrupted[top][:1, position:])
            for first in range(0, len(windows), together):
                cells = windows[first : first + together]
                column = _Column(runs, runner, component, clean, corrupted, attended)
                final = column.climb(cells)[:, -1]
                score = metric(final_logits(model, final)).double().cpu()
                scores[first : first + together, position] = score.view(len(cells), -1).mean(1)
        tick()
    return scores


class _Column:
    """The cells of one position: a batch that grows as it climbs the layers."""

    def __init__(
        self,
        runs: Runs,
        runner: BlockRunner,
        component: str,
        clean: dict[int, Tensor],
        corrupted: dict[str, Tensor],
        attended: list[Attended],
    ) -> None:
        self.model: HookedModel = runs.model
        self.runner, self.component, self.attended = runner, component, attended
        self.samples, self.position = runs.samples, runner.start
        self.clean = {layer: value[self.position] for layer, value in clean.items()}
        self.corrupted = {name: value[:, self.position :] for name, value in corrupted.items()}

    def climb(self, cells: Sequence[range]) -> Float[Tensor, "rows pos d_model"]:
        """Final residual stream of every cell's rows, in the order of the cells, samples innermost."""
        n_layers = self.model.cfg.n_layers
        # A single restored block output is a changed input of the next block: its cell joins there, and needs no hook.
        late = int(self.component == "resid_post" and all(len(cell) == 1 for cell in cells))
        order = sorted(range(len(cells)), key=lambda cell: cells[cell].start)
        entry = [cells[cell].start + late for cell in order]
        resid: Tensor | None = None
        joined = 0
        inside = torch.zeros(0, dtype=torch.bool)

        def patch(layer: int) -> ActivationHook:
            def hook_function(activation: Tensor, hook: object) -> Tensor:
                rows = inside.to(activation.device)
                activation = activation.clone()
                activation[rows, 0] = self.clean[layer]
                return activation

            return hook_function

        touched = sorted({layer for cell in cells for layer in cell}) if not late else []
        with self.model.hooks(fwd_hooks=[(Site(self.component, layer).hook, patch(layer)) for layer in touched]):
            for layer in range(entry[0], n_layers + 1):
                newcomers = sum(start == layer for start in entry[joined:])
                if newcomers:
                    fresh = self._start(layer, late).repeat(newcomers, 1, 1)
                    resid = fresh if resid is None else torch.cat([resid, fresh])
                    joined += newcomers
                if layer == n_layers:
                    break
                assert resid is not None
                inside = torch.tensor([layer in cells[cell] for cell in order[:joined]]).repeat_interleave(self.samples)
                samples = torch.arange(self.samples, device=resid.device).repeat(joined)
                resid = self.runner(layer, resid, self.runner.crop(self.attended[layer], samples))
        assert resid is not None
        back = torch.argsort(torch.tensor(order))
        return resid.view(len(cells), self.samples, *resid.shape[1:])[back].flatten(0, 1)

    def _start(self, layer: int, late: int) -> Float[Tensor, "samples pos d_model"]:
        """Residual stream with which a cell joins at `layer`."""
        if not late:
            return self.corrupted[Site("resid_pre", layer).hook]
        resid = self.corrupted[Site("resid_post", layer - 1).hook].clone()
        resid[:, 0] = self.clean[layer - 1]
        return resid
