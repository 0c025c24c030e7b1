"""Floating-point operations that an exact result needs, without attention scores and norms."""

from typing import Any

from tl_rome.editors.rank_one.batch import Rewrite
from tl_rome.patching.patch import Patch
from tl_rome.patching.runs import Runs


def least_of_map(model: Any, runs: Runs, patch: Patch) -> float:
    """Of one tracing map."""
    cfg, n_pos = model.cfg, len(runs.tokens)
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.ndim > 1)
    total = 0
    for window in patch.windows:
        layers = cfg.n_layers - window.start - (patch.component == "resid_post")
        for position in range(runs.span.start, n_pos):
            total += runs.samples * 2 * (layers * (n_pos - position) * block + cfg.d_model * cfg.d_vocab)
    return float(total)


def least_of_edit(model: Any, layer: int, rewrite: Rewrite, evaluations: int) -> float:
    """Of one ROME edit that takes some evaluations of the loss."""
    cfg, rows = model.cfg, rewrite.rows
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.ndim > 1)
    once = sum(len(tokens) for tokens, _ in rows) * cfg.n_layers * block
    moved = sum(len(tokens) - last for tokens, last in rows)
    scored = len(rewrite.prompts) * len(rewrite.target) + 1
    step = (moved * (cfg.n_layers - layer - 2) + scored) * block + scored * cfg.d_model * cfg.d_vocab
    return float(2 * once + 2 * step * (2 * evaluations - 1))
