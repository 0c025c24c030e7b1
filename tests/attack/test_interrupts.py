"""Ctrl-C at every bytecode of what writes weights and adds hooks, and at random moments of everything else.

Afterwards the model is as it was, bit for bit and hook for hook, and still runs; only an `apply` or `undo` by hand
may have done its work, and then the edit knows it. Ctrl-C itself is neither lost nor handled by others than before.
"""

import random
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from jaxtyping import Float, jaxtyped
from support.attacked import Attacked
from support.interrupts import WATCHED, Bytecodes, interrupted, where
from support.state import changed, model_state, process_state
from torch import Tensor

from tl_rome.editors import Edit, EditSequence
from tl_rome.running.hooks import hooked
from tl_rome.storage.parts import read_as

AnyEdit = Edit | EditSequence
SECTIONS = ("edit", "sequence", "rows", "hooks")
"""Context managers that are entered and left."""
WATCHED_TOO = (*WATCHED, "transformer_lens/hook_points.py")


def job_of(attacked: Attacked, section: str) -> Callable[[], object]:
    """Enter and leave a context without doing anything inside."""

    def contexts() -> None:
        made = {
            "edit": lambda: attacked.edit.applied(attacked.model),
            "sequence": lambda: attacked.sequence.applied(attacked.model),
            "hooks": lambda: hooked(attacked.model, [("blocks.1.hook_mlp_out", lambda value, hook: value + 1)]),
        }
        with made[section]():
            pass

    return attacked.jobs()["rows"] if section == "rows" else contexts


def attempt(attacked, outcomes, run: Callable[[], object], describe: str, finish: Callable[[], str] = str) -> None:
    """Run something that ends in KeyboardInterrupt or not, put the rest right, and note what was not."""
    process, place = process_state(), ""
    try:
        ending = "interrupted" if run() else "went on to the end"
    except KeyboardInterrupt as error:
        ending, place = "interrupted", where(error)
    except Exception as error:
        ending, place = "another error", f"{where(error)} {error!r}"
        outcomes.fault(f"{type(error).__name__} in place of KeyboardInterrupt", f"{describe}, {place}")
    try:
        Bytecodes().run(job_of(attacked, "hooks"))
        wrong = finish() or attacked.broken()
    except KeyboardInterrupt:
        wrong = "Ctrl-C came only in the next call"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    wrong = "; ".join(filter(None, [wrong, changed(process, process_state())]))
    if wrong:
        outcomes.fault(wrong.split(":")[0], f"{describe}, {place}: {wrong[:200]}")
        attacked.renew()
    else:
        outcomes[ending] += 1


def bytecodes_of(run: Callable[[], object]) -> int:
    counting = Bytecodes(watched=WATCHED_TOO)
    counting.run(run)
    return counting.count


def at_every_bytecode(attacked, outcomes, attempts, twice, make, total, describe, finish=str):
    """Interrupt a job, made anew each time, at evenly spread bytecodes of its own, or once more soon after that."""
    assert total > 30
    for moment in range(1, total + 1, max(1, total // attempts)):
        moments = (moment, 1 + 11 * moment % 97) if twice else (moment,)
        job, run = make(), Bytecodes(*moments, watched=WATCHED_TOO).run
        attempt(attacked, outcomes, partial(run, job), f"{describe} at {moments}", finish)
    if lost := outcomes["went on to the end"]:
        outcomes.fault("Ctrl-C was lost", f"{describe}, {lost} times")
    outcomes.check()


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_at_every_bytecode_of_a_context(attacked, outcomes, effort, section, twice):
    def make() -> Callable[[], object]:
        return job_of(attacked, section)

    make()()  # the first call does more: it reads annotations
    at_every_bytecode(
        attacked, outcomes, effort(20, 1000 if twice else 10**6), twice, make, bytecodes_of(make()), section
    )


def is_in(edit: AnyEdit, model: object) -> bool:
    parts = edit.edits if isinstance(edit, EditSequence) else (edit,)
    return all(part.is_applied(model) for part in parts)


@pytest.mark.parametrize("which", ["edit", "sequence"])
@pytest.mark.parametrize("direction", ["apply", "undo"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_at_every_bytecode_of_apply_and_undo(attacked, outcomes, effort, which, direction, twice):
    with getattr(attacked, which).applied(attacked.model):
        edited = model_state(attacked.model)

    def prepare() -> AnyEdit:
        edit = getattr(attacked, which)
        if direction == "undo":
            edit.apply(attacked.model)
        return edit

    def finish() -> str:
        edit = getattr(attacked, which)
        if not is_in(edit, attacked.model):
            return ""
        wrong = changed(edited, model_state(attacked.model))
        edit.undo(attacked.model)
        return wrong and f"the edit says that it is applied, {wrong}"

    def make() -> Callable[[], object]:
        return partial(getattr(prepare(), direction), attacked.model)

    attempts, total = effort(20, 1000 if twice else 10**6), bytecodes_of(make())
    finish()
    at_every_bytecode(attacked, outcomes, attempts, twice, make, total, f"{direction} {which}", finish)


def test_at_random_moments(attacked, outcomes, effort):
    draw = random.Random(effort(1, time.time_ns()))
    seconds: dict[str, float] = {}
    for name, job in attacked.jobs().items():
        job()
        started = time.perf_counter()
        job()
        seconds[name] = time.perf_counter() - started
    for number in range(effort(18, 2500)):
        name = list(seconds)[number % len(seconds)]
        delays = [draw.uniform(0, 1.1 * seconds[name])]
        if draw.random() < 0.2:
            delays.append(draw.uniform(0, 0.005))
        run = partial(interrupted, attacked.jobs()[name], *delays)
        attempt(attacked, outcomes, run, f"{name} after {delays} s")
    outcomes.check()


def test_sizes_of_axes_do_not_outlast_a_context_that_an_interrupt_left_open():
    with jaxtyped("context"):
        assert [len(read_as(Float[Tensor, "n n"], torch.eye(size))) for size in (2, 3)] == [2, 3]
