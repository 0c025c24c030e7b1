"""Tracing by the definition: every cell is a full forward pass of the corrupted prompt with some states restored.

Slow, short and obviously right. `sweep` gives the same numbers with a fraction of the work; this is its twin in the
tests and what runs where `sweep` cannot.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.forward import device_of
from tl_rome.patching.runs import Metric, Runs
from tl_rome.sites import ActivationHook, Site


def trace_plain(
    runs: Runs, component: str, windows: Sequence[range], metric: Metric, *, max_rows: int, tick=lambda: None
) -> Float[Tensor, "layer pos"]:
    """Mean score over corrupted samples with `component` restored in each window of layers, at each position.

    Args:
        runs: The clean and corrupted runs.
        component: What is restored; any component of `Site`.
        windows: The layers restored for each row of the result.
        metric: Score of the last position's logits.
        max_rows: Bound on the batch, in rows; at least one cell runs at a time.
        tick: Called after each position.
    """
    model, clean = runs.model, runs.clean(component)
    tokens = runs.prompt.tokens.to(device_of(model))
    together = max(1, max_rows // runs.samples)
    scores = torch.zeros(len(windows), len(tokens), dtype=torch.float64)
    for position in range(len(tokens)):
        for first in range(0, len(windows), together):
            cells = windows[first : first + together]
            hooks = [*runs.corrupt_hooks(len(cells))]
            for layer in sorted({layer for cell in cells for layer in cell}):
                rows = torch.tensor([layer in cell for cell in cells]).repeat_interleave(runs.samples)
                hooks.append((Site(component, layer).hook, _restore_rows(clean[layer][position], rows, position)))
            with model.hooks(fwd_hooks=hooks):
                logits = model(tokens.repeat(len(cells) * runs.samples, 1))[:, -1]
            scores[first : first + together, position] = metric(logits).double().cpu().view(len(cells), -1).mean(1)
        tick()
    return scores


def _restore_rows(value: Float[Tensor, "..."], rows: Tensor, position: int) -> ActivationHook:
    def hook_function(activation: Tensor, hook: object) -> Tensor:
        activation = activation.clone()
        activation[rows.to(activation.device), position] = value
        return activation

    return hook_function
