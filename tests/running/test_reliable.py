"""Ctrl-C at every step of a reliable block: its set-up happens whole or not at all, its clean-up always."""

import contextlib
import dis
import gc
import signal
import sys
import threading

import pytest

from tl_rome.running import interrupts
from tl_rome.running.interrupts import reliable, uninterrupted


@pytest.fixture(autouse=True)
def handler():
    """The handler of the caller is there again after every test."""
    before = signal.getsignal(signal.SIGINT)
    yield
    after = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert after is before


CHECKING = {dis.opmap[name] for name in dis.opmap if name.startswith(("CALL", "JUMP_BACKWARD"))}
"""Opcodes after which Python looks for signals; it does when a function begins or goes on, too."""


def interrupted_at(steps, work):
    """Run some work with SIGINT at the given steps: places where Python may see one, in this file and what it tests.

    Returns how many steps there are, and whether the work was interrupted.
    """
    files, count, last = {__file__, interrupts.__file__, contextlib.__file__}, 0, {}

    def trace(frame, event, _arg):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            opcode = frame.f_code.co_code[frame.f_lasti]
            if opcode == dis.opmap["RESUME"] or last.get(frame) in CHECKING:
                count += 1
                if count in steps:
                    signal.raise_signal(signal.SIGINT)
            last[frame] = opcode
        elif event == "exception":
            last.pop(frame, None)
        return trace

    try:
        sys.settrace(trace)
        work()
    except KeyboardInterrupt:
        return count, True
    finally:
        sys.settrace(None)
    return count, False


class Thing:
    def __init__(self):
        self.log = []

    @reliable
    def block(self, name):
        self.log.append(name)
        try:
            yield
        finally:
            self.log.remove(name)

    @contextlib.contextmanager
    def ordinary(self):
        with self.block("inner"):
            yield

    def work(self):
        with self.block("outer"):
            with self.ordinary():
                len("body")
            len("body")

    @uninterrupted
    def swap(self):
        self.log.append("half")
        self.log.append("whole")


def every_step(work, pairs=False):
    """Steps to interrupt at: each; and each with a second one soon after."""
    total, was = interrupted_at((), work)
    assert not was
    assert total > 10
    for step in range(1, total + 1):
        yield {step}
        if pairs:
            yield {step, step + 1}
            yield {step, step + 7}


def test_what_a_block_puts_back_is_put_back_wherever_the_interrupt_comes():
    thing, seen = Thing(), []
    for steps in every_step(thing.work, pairs=True):
        seen.append(interrupted_at(steps, thing.work)[1])
        assert thing.log == [], steps
        assert not interrupts._blocks.open, steps
    assert seen.count(False) <= 3, "an interrupt was lost"


def test_an_ordinary_context_manager_fails_this_test():
    """The test above can fail: without reliability something stays behind, or the clean-up comes too late."""
    left = []

    @contextlib.contextmanager
    def plain(log):
        log.append("here")
        yield
        log.clear()

    def work():
        log = []
        left.append(log)
        with plain(log):
            len("body")

    for steps in every_step(work):
        interrupted_at(steps, work)
    assert any(left)


def test_an_uninterrupted_function_runs_to_its_end():
    thing = Thing()
    for steps in every_step(thing.swap, pairs=True):
        thing.log.clear()
        interrupted_at(steps, thing.swap)
        assert thing.log in ([], ["half", "whole"])


def test_inside_the_block_an_interrupt_comes_at_once():
    thing, reached = Thing(), []

    def work():
        with thing.block("outer"):
            signal.raise_signal(signal.SIGINT)
            reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not reached


def test_a_handler_that_does_not_raise_is_heard_and_the_block_goes_on():
    """As in programs that finish their round first."""
    thing, heard = Thing(), []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(list(thing.log)))
    try:
        for steps in list(every_step(thing.work)):
            heard.clear()
            assert not interrupted_at(steps, thing.work)[1]
            assert thing.log == []
            assert len(heard) == 1, steps
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_block_that_is_forgotten_is_left_when_its_frame_is_gone():
    thing = Thing()
    thing.block("kept").__enter__()
    gc.collect()
    assert thing.log == []
    with thing.block("next"):  # which gives the signal back
        assert thing.log == ["next"]


def test_blocks_that_overlap_are_left_in_any_order():
    thing = Thing()
    first, second = thing.block("first"), thing.block("second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert thing.log == ["second"]
    second.__exit__(None, None, None)
    assert thing.log == []


def test_other_threads_work_without_signals():
    thing, before = Thing(), signal.getsignal(signal.SIGINT)

    def inside():
        with thing.block("thread"):
            thing.swap()
            assert signal.getsignal(signal.SIGINT) is before

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert thing.log == ["half", "whole"]
