"""Comparing tensors, weights and a model's state before and after a call."""

from dataclasses import dataclass
from typing import Any

import torch

from tl_rome.running.matrices import w_out
from tl_rome.sites import HookedModel


def relative_error(found, expected):
    """Largest difference over the largest expected value, in float64."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def weights(model):
    """A copy of every W_out."""
    return [w_out(model, layer).detach().clone() for layer in range(model.cfg.n_layers)]


def same(left, right):
    """Whether two lists of tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@dataclass
class Found:
    """What a trace must leave as it is."""

    model: Any

    def __post_init__(self):
        self.state = self._look()
        self.weights = [parameter.clone() for parameter in self.model.parameters()]

    def _look(self):
        return (
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
            [parameter.requires_grad for parameter in self.model.parameters()],
            [len(point.fwd_hooks) for point in self.model.hook_dict.values()],
            [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in self.model.modules()],
        )

    def check(self):
        assert self._look() == self.state
        assert all(torch.equal(a, b) for a, b in zip(self.model.parameters(), self.weights, strict=True))


class Stub(HookedModel):
    """Has what this package asks of a model, but is neither class."""

    def __init__(self, **attributes):
        vars(self).update(attributes)
