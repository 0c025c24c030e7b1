"""Every public function with arguments that make no sense, of the right type or of a wrong one.

Each call returns a value, raises an error of ours or the error of a function that the caller gave, or says in a
TypeError which argument is wrong. In every case the model and the process are as they were.
"""

import re
import time
import zlib

import matplotlib
import pytest
import torch
from hypothesis import given, seed
from hypothesis import strategies as st
from support.attacked import Attacked
from support.families import KINDS
from support.interrupts import time_limit, where
from support.odd_values import OddValues, wrong
from support.public_calls import public_calls
from support.state import changed, process_state
from support.working_values import World

from tl_rome.editors import BatchEdit
from tl_rome.errors import TLRomeError

CALLS = public_calls()
pytestmark = pytest.mark.filterwarnings("ignore")


class Surface:
    """What works on one model, and odd values."""

    def __init__(self, folder, kind, new_folder):
        self.attacked, self._new_folder = Attacked(folder, kind), new_folder
        self._fill()

    def _fill(self):
        folder = self._new_folder()
        self.world = World(self.attacked, folder)
        self.odd = OddValues(self.world.objects, folder)

    def renew(self):
        """Take a new model, because the old one is broken."""
        self.attacked.renew()
        self._fill()


@pytest.fixture(scope="session")
def surfaces(family_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        matplotlib.use("Agg")
        patch.chdir(tmp_path_factory.mktemp("here"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield {kind: Surface(family_dir("gpt2"), kind, lambda: tmp_path_factory.mktemp("surface")) for kind in KINDS}


def put_back(surface):
    """Undo what a bare `apply` has done."""
    attacked = surface.attacked
    for edit in (attacked.sequence, attacked.edit, surface.world.objects[BatchEdit]):
        parts = getattr(edit, "edits", (edit,))
        if all(part.is_applied(attacked.model) for part in parts):
            edit.undo(attacked.model)


def made(surface, call, arguments):
    """What a call raises, and what it left behind, in words."""
    from matplotlib import pyplot

    attacked, process, error = surface.attacked, process_state(), None
    if call.name.endswith(".undo"):
        surface.world.objects[call.cls].apply(attacked.model)
    try:
        with time_limit():
            surface.world.call(call, arguments)
    except Exception as raised:
        error = raised
    finally:
        pyplot.close("all")
        put_back(surface)
    broken, left = attacked.broken(), changed(process, process_state())
    if broken:
        surface.renew()
    return error, "; ".join(filter(None, [broken, left]))


def is_clear(error, call):
    """Whether an error is one that a user can act on."""
    if error is None or isinstance(error, TLRomeError):
        return True
    if isinstance(error, ZeroDivisionError) and "caller's own" in str(error):
        return True
    named = any(re.search(rf"\b{name}\b", str(error)) for name in call.parameters)
    return isinstance(error, TypeError) and named


def brief(value):
    """The value on one line, as far as it helps."""
    return type(value).__name__ if isinstance(value, torch.nn.Module) else " ".join(repr(value).split())[:100]


@pytest.mark.parametrize("name", CALLS)
def test_every_public_name_has_values(surfaces, name):
    surface, call = surfaces[KINDS[0]], CALLS[name]
    arguments = surface.world.arguments(call)
    for parameter in arguments:
        surface.odd.of(parameter, call.parameters[parameter].annotation)


@pytest.mark.parametrize("name", CALLS)
def test_odd_calls(surfaces, outcomes, effort, name):
    call = CALLS[name]
    if not call.parameters:
        return

    @seed(zlib.crc32(name.encode()) + effort(0, time.time_ns()))
    @given(data=st.data(), kind=st.sampled_from(KINDS))
    def attempt(data, kind):
        surface = surfaces[kind]
        arguments, changes = surface.world.arguments(call), {}
        some = st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=2, unique=True)
        for parameter in data.draw(some, "which"):
            odd = surface.odd.of(parameter, call.parameters[parameter].annotation)
            changes[parameter] = data.draw(odd | wrong(), parameter)
        error, left = made(surface, call, arguments | changes)
        shown = f"{name}(..., {', '.join(f'{key}={brief(value)}' for key, value in changes.items())})"
        if left:
            outcomes.fault("left behind", f"{shown} {kind}: {left:.300}")
        elif is_clear(error, call):
            outcomes.note(error)
        else:
            outcomes.fault(f"{type(error).__name__}", f"{shown}: {error!r:.200} at {where(error)}", of=where(error))

    attempt()
    outcomes.check()
