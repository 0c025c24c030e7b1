"""Ctrl-C at every place where Python would notice it, and at random moments.

Python runs the handler of a signal at calls, backward jumps and the beginnings of functions, never between two
bytecodes of a straight line. `Bytecodes` therefore only marks the signal as arrived, at a bytecode of one's choice,
and leaves it to the interpreter to notice: what a test sees is what a user's Ctrl-C can do, neither more nor less.
"""

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from traceback import extract_tb
from types import FrameType
from typing import Any

import tl_rome

WATCHED = (str(Path(tl_rome.__file__).parent), contextlib.__file__)


class _Arrival:
    """`-_Arrival()` marks SIGINT as arrived; an operator is no call, so that the interpreter notices it later."""

    __neg__ = staticmethod(partial(_thread.interrupt_main, signal.SIGINT))


_ARRIVAL: Any = _Arrival()


class Bytecodes:
    """Runs a function, counts the bytecodes of watched files, and interrupts it at some of them.

    Args:
        moments: Numbers of bytecodes at which SIGINT arrives; each further one from when the last was noticed.
        watched: Beginnings of the names of watched files.
    """

    def __init__(self, *moments: int, watched: tuple[str, ...] = WATCHED) -> None:
        self.count = 0
        self._moments, self._watched = list(moments), watched
        self._known: dict[str, bool] = {}
        self._live = False

    def run(self, function: Callable[[], object]) -> None:
        """Call the function; a signal that has arrived is noticed before this returns.

        Raises:
            AssertionError: If the function replaced the handler of SIGINT.
            BaseException: What the function raises, KeyboardInterrupt too.
        """
        before, self._live = signal.signal(signal.SIGINT, self._interrupt), True
        try:
            sys.settrace(self._enter)
            function()
            notice()
        finally:
            self._live = False
            sys.settrace(None)
            found = signal.signal(signal.SIGINT, before)
            assert found == self._interrupt, "the handler of SIGINT is another one than before"

    def _watches(self, frame: FrameType) -> bool:
        name = frame.f_code.co_filename
        if name not in self._known:
            self._known[name] = name.startswith(self._watched)
        return self._known[name]

    def _enter(self, frame: FrameType, *_: object) -> Any:
        if self._watches(frame):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return self._step
        return None

    def _step(self, _: FrameType, event: str, *__: object) -> Any:
        if event == "opcode":
            self.count += 1
            if self._moments and self.count == self._moments[0]:
                sys.settrace(None)
                if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []):
                    signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # waits until it is no longer blocked
                else:
                    _ = -_ARRIVAL
        return self._step

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT: goes on counting if a further signal is to come, and does what Python's own does."""
        if not self._live:
            return
        self._moments, self.count = self._moments[1:], 0
        if self._moments:
            sys.settrace(self._enter)
            while frame is not None:
                if self._watches(frame):
                    frame.f_trace, frame.f_trace_opcodes, frame.f_trace_lines = self._step, True, False
                frame = frame.f_back
        raise KeyboardInterrupt


def notice() -> None:
    """Give the interpreter the chance to notice a signal."""
    for _ in range(3):
        time.sleep(0)


def interrupted(job: Callable[[], object], *delays: float) -> bool:
    """Run a job while SIGINT arrives after delays in seconds, each from the one before; all have arrived at the end.

    Returns:
        Whether the job ended in KeyboardInterrupt; False if all signals came after its end.

    Raises:
        AssertionError: If the job replaced the handler of SIGINT, or did not end although a signal was noticed in it.
        Exception: What the job raises apart from KeyboardInterrupt.
    """
    main, noticed, live, ended = threading.get_ident(), 0, True, False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal noticed
        if live:
            noticed += 1
            raise KeyboardInterrupt

    def send() -> None:
        for delay in delays:
            time.sleep(delay)
            signal.pthread_kill(main, signal.SIGINT)

    sender, before = threading.Thread(target=send), signal.signal(signal.SIGINT, interrupt)
    try:
        sender.start()
        job()
        live = False
    except KeyboardInterrupt:
        live, ended = False, True
    finally:
        live = False
        sender.join()
        notice()
        found = signal.signal(signal.SIGINT, before)
    assert found is interrupt, "the handler of SIGINT is another one than before"
    assert ended or not noticed, "KeyboardInterrupt was raised in the job and lost there"
    return ended


class TooLong(Exception):
    """A call that did not end."""


@contextlib.contextmanager
def time_limit(seconds: int = 60) -> Iterator[None]:
    """End what runs inside after a time.

    Raises:
        TooLong: If it had to be ended.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def where(error: BaseException) -> str:
    """The innermost line of a traceback that is in a watched file."""
    frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename.startswith(WATCHED)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "outside"
