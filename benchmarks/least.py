"""Floating-point operations that an exact result needs, without attention scores and norms."""

from typing import Any

from tl_rome.editors.rank_one.batch import Rewrite
from tl_rome.patching.patch import Patch
from tl_rome.patching.runs import Runs
from tl_rome.running.matrices import mlp_matrices


def block_weights(model: Any) -> int:
    """Weights that a token passes in a block: bridges keep some of a block's twice."""
    cfg = model.cfg
    heads = cfg.n_heads + (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
    mlp = sum(matrix.weight(model).numel() for matrix in mlp_matrices(model, 0))
    return 2 * cfg.d_model * heads * cfg.d_head + mlp


def least_of_map(model: Any, runs: Runs, patch: Patch) -> float:
    """Of one tracing map."""
    cfg, n_pos = model.cfg, len(runs.tokens)
    block = block_weights(model)
    total = 0
    for window in patch.windows:
        layers = cfg.n_layers - window.start - (patch.component == "resid_post")
        for position in range(runs.span.start, n_pos):
            total += runs.samples * 2 * (layers * (n_pos - position) * block + cfg.d_model * cfg.d_vocab)
    return float(total)


def least_of_edit(model: Any, layer: int, rewrite: Rewrite, evaluations: int) -> float:
    """Of one ROME edit that takes some evaluations of the loss."""
    cfg, rows = model.cfg, rewrite.rows
    block = block_weights(model)
    once = sum(len(tokens) for tokens, _ in rows) * cfg.n_layers * block
    moved = sum(len(tokens) - last for tokens, last in rows)
    scored = sum(map(len, rewrite.targets)) + 1
    step = (moved * (cfg.n_layers - layer - 2) + scored) * block + scored * cfg.d_model * cfg.d_vocab
    return float(2 * once + 2 * step * (2 * evaluations - 1))
