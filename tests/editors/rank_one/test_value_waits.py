"""A device is waited for once in each step of v*."""

from dataclasses import replace

import pytest
import torch
from support.edits import CONTEXTS, LAYER, REQUEST
from support.families import KINDS
from torch.utils._python_dispatch import TorchDispatchMode

from tl_rome.editors import RELEASED
from tl_rome.editors.rank_one.value import optimise_values
from tl_rome.facts import Fact

WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "is_nonzero", "equal"}
"""Operators whose result has to be known before the next can be begun."""
FACTS = [REQUEST.fact, Fact("{} is located in the city of", "Big Ben", "Rome")]


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITS:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_once(tiny, kind, monkeypatch):
    model, own = tiny("gpt2", kind), torch.Tensor.tolist

    def waited(steps):
        # Adam reads its count of steps, which torch keeps on the CPU.
        config = replace(RELEASED, max_evaluations=steps, stop_loss=0.0, optimiser="gradient_descent")
        with monkeypatch.context() as patched, Waits() as waits:
            patched.setattr(torch.Tensor, "tolist", lambda tensor: waits.seen.append("tolist") or own(tensor))
            found = optimise_values(model, LAYER, FACTS, CONTEXTS, config)
        assert [len(value.losses) for value in found] == [steps] * len(FACTS)
        return waits.seen

    few, many = waited(2), waited(5)
    assert len(many) - len(few) == 3
    assert many.count("tolist") - few.count("tolist") == 3
