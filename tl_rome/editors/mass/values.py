"""z, the states that a batch asks for: which models have them, and what NAS makes of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from tl_rome.editors.mass.config import MassConfig
from tl_rome.editors.rank_one.value import OptimisedValue
from tl_rome.errors import UnsupportedModelError
from tl_rome.running.forward import device_of, read
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import value_hook
from tl_rome.sites import HookedModel, Site

_TOLERANCE = 0.05
"""Relative error that rounding may leave in bfloat16; a norm after the MLP makes far more."""
_TOO_LARGE = 2.0
"""NAS drops a delta with which W_out's output is this many times longer than the anchor."""


@torch.no_grad()
def check_stream(model: HookedModel, layer: int) -> None:
    """Make sure that what is added to W_out's output is added to the residual stream, and nothing else happens to it.

    Raises:
        UnsupportedModelError: If it is not: the layers' shares of a residual have no meaning then.
    """
    post, device = Site("resid_post", layer).hook, device_of(model)
    tokens = torch.tensor([[0, min(1, model.cfg.d_vocab - 1)]], device=device)
    usual = read(model, tokens, [post])[post]
    added = torch.randn(usual.shape[-1], generator=torch.Generator().manual_seed(0)).to(usual)
    added *= usual[0, -1].norm() / added.norm()
    with hooked(model, [value_hook(model, layer, lambda output: output + added)]):
        moved = read(model, tokens, [post])[post] - usual
    if not float((moved - added).norm(dim=-1).max() / added.norm()) <= _TOLERANCE:
        raise UnsupportedModelError(
            f"in {model.cfg.model_name!r} the output of an MLP is normalised or scaled before it joins the residual "
            "stream, so that mass editors cannot share a residual between layers; edit it with Rome"
        )


def with_norm_anchor(found: Sequence[OptimisedValue], config: MassConfig) -> list[OptimisedValue]:
    """Values whose W_out output has the anchor's norm, v* = a (m0 + delta) / ||m0 + delta||; as they are without one.

    "Norm Anchors Make Model Edits Last", arXiv 2602.02543.
    """
    if config.norm_anchor is None:
        return list(found)
    return [_anchored(value, config.norm_anchor) for value in found]


def _anchored(value: OptimisedValue, anchor: float) -> OptimisedValue:
    assert value.output is not None
    whole = value.output + value.delta
    size = float(whole.norm())
    delta = torch.zeros_like(whole) if size > _TOO_LARGE * anchor else whole * (anchor / size) - value.output
    return replace(value, value=value.initial + delta)
