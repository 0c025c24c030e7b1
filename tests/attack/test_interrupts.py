"""Ctrl-C at every bytecode of what writes weights and adds hooks, and at random moments of everything else.

Afterwards the model is as it was, bit for bit and hook for hook, and still runs; only an `apply` or `undo` by hand may have done
its work, and then the edit knows it. Ctrl-C itself is neither lost nor handled by others than before.
"""

import random
import time
from collections.abc import Callable

import pytest
from support.attacked import Attacked
from support.interrupts import WATCHED, Bytecodes, interrupted, where
from support.state import changed, model_state, process_state

from tl_rome.editors import Edit, EditSequence
from tl_rome.running.forward import hooked

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


def attempt(attacked, outcomes, run: Callable[[], object], describe: str, finish: Callable[[], str]) -> None:
    """Run something that ends in KeyboardInterrupt or not, put the rest right, and note what was not."""
    process, place = process_state(), ""
    try:
        run()
        ending = "went on to the end"
    except KeyboardInterrupt as error:
        ending, place = "interrupted", where(error)
    except Exception as error:
        ending, place = "another error", f"{where(error)} {error!r}"
        outcomes.fault(f"{type(error).__name__} in place of KeyboardInterrupt", f"{describe}, {place}")
    try:
        wrong = finish() or attacked.broken()
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    wrong = "; ".join(filter(None, [wrong, changed(process, process_state())]))
    if wrong:
        outcomes.fault(wrong.split(":")[0], f"{describe}, {place}: {wrong[:200]}")
        attacked.renew()
    else:
        outcomes[ending] += 1


def moments(total: int, step: int) -> list[int]:
    return list(range(1, total + 1, step))


def bytecodes_of(run: Callable[[], object]) -> int:
    counting = Bytecodes(watched=WATCHED_TOO)
    counting.run(run)
    return counting.count


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_at_every_bytecode_of_a_context(attacked, outcomes, effort, section, twice):
    total = bytecodes_of(job_of(attacked, section))
    assert total > 30
    for moment in moments(total, effort(max(7, total // 40), 1)):
        both = (moment, 1 + 11 * moment % 97) if twice else (moment,)
        run = Bytecodes(*both, watched=WATCHED_TOO).run
        attempt(
            attacked, outcomes, lambda run=run: run(job_of(attacked, section)), f"{section} at {both}", lambda: ""
        )
    outcomes.check()


def is_in(edit: AnyEdit, model: object) -> bool:
    parts = edit.edits if isinstance(edit, EditSequence) else (edit,)
    return all(part.is_applied(model) for part in parts)


@pytest.mark.parametrize("which", ["edit", "sequence"])
@pytest.mark.parametrize("direction", ["apply", "undo"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_at_every_bytecode_of_apply_and_undo(attacked, outcomes, effort, which, direction, twice):
    edit: AnyEdit = getattr(attacked, which)
    with edit.applied(attacked.model):
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

    prepare()
    total = bytecodes_of(lambda: getattr(edit, direction)(attacked.model))
    finish()
    assert total > 30
    for moment in moments(total, effort(max(7, total // 40), 1)):
        both = (moment, 1 + 11 * moment % 97) if twice else (moment,)
        work, run = getattr(prepare(), direction), Bytecodes(*both, watched=WATCHED_TOO).run
        describe = f"{direction} {which} at {both}"
        attempt(attacked, outcomes, lambda work=work, run=run: run(lambda: work(attacked.model)), describe, finish)
    outcomes.check()


def test_at_random_moments(attacked, outcomes, effort):
    draw = random.Random(effort(1, time.time_ns()))
    seconds: dict[str, float] = {}
    for name, job in attacked.jobs().items():
        job()
        started = time.perf_counter()
        job()
        seconds[name] = time.perf_counter() - started
    for number in range(effort(27, 5000)):
        name = list(seconds)[number % len(seconds)]
        delays = [draw.uniform(0, 1.1 * seconds[name])]
        if draw.random() < 0.2:
            delays.append(draw.uniform(0, 0.005))
        job = attacked.jobs()[name]
        ended = []
        attempt(
            attacked,
            outcomes,
            lambda job=job, delays=delays, ended=ended: ended.append(interrupted(job, *delays)),
            f"{name} after {delays} s",
            lambda: "",
        )
        if ended == [True]:
            outcomes["went on to the end"] -= 1
            outcomes["interrupted"] += 1
    outcomes.check()
