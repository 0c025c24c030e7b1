"""Ctrl-C comes before a model is changed or after it has been put back, never in between.

Python raises KeyboardInterrupt between any two steps of the main thread, inside a `finally` too, so that what a `with`
block promises to put back may stay as it was inside. While a `reliable` block is open, or an `uninterrupted` function
runs, SIGINT therefore has a handler of ours. It hands the signal on to the one that was there, at once inside the block
itself, but only at their end where it meets the block's set-up or clean-up, or an uninterrupted function.
"""

import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, no_type_check

_Parameters = ParamSpec("_Parameters")
_Value = TypeVar("_Value")


class _Blocks(threading.local):
    """The reliable blocks that a thread is in, outermost first; one whose frame is gone is dead."""

    def __init__(self) -> None:
        self.open: list[weakref.ref[Any]] = []


_blocks = _Blocks()


@no_type_check  # checks while testing would be code around this, during which interrupts come, and one frame more
class _Gate:
    """The handler of SIGINT while there is anything to protect; used by the main thread alone, which gets signals."""

    def __init__(self) -> None:
        self.pending = False
        self._calls = 0
        self._previous: Any = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _protected(frame):
            self.pending = True
        else:
            self._previous(number, frame)

    def open(self) -> None:
        """Take the signal over for a while. An interrupt before this is done leaves everything as it was."""
        previous = signal.getsignal(signal.SIGINT)
        if previous is not self and callable(previous):
            self._previous = previous
            self.pending = False  # what is left of a second interrupt right after one that was raised
            signal.signal(signal.SIGINT, self)
        self._calls += 1

    def close(self) -> None:
        """Give the signal back if nobody needs it any more, and hand on what came meanwhile."""
        self._calls -= 1
        needed = self._calls or any(block() is not None for block in _blocks.open)
        if not needed and signal.getsignal(signal.SIGINT) is self:
            signal.signal(signal.SIGINT, self._previous)
        if not _protected(sys._getframe(2)):
            self.hand_on()

    def hand_on(self) -> None:
        """Raise the interrupt that has been held back, if there is one."""
        if self.pending:
            self.pending = False
            self._previous(signal.SIGINT, sys._getframe(1))


_gate = _Gate()


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def uninterrupted(function: Callable[_Parameters, _Value]) -> Callable[_Parameters, _Value]:
    """Let Ctrl-C wait until a call of this function has returned; for functions that take a moment."""

    @wraps(function)
    @no_type_check  # see above
    def whole(*args, **kwargs):
        if not _on_main_thread():
            return function(*args, **kwargs)
        _gate.open()
        try:
            return function(*args, **kwargs)
        finally:
            _gate.close()

    _PROTECTED.add(whole.__code__)  # type: ignore[attr-defined]
    return whole


def give_way() -> None:
    """Raise a Ctrl-C that is being held back; for set-up that waits for others, where nothing has been done yet."""
    if _on_main_thread():
        _gate.hand_on()


def reliable(
    function: Callable[_Parameters, Iterator[_Value]],
) -> Callable[_Parameters, AbstractContextManager[_Value]]:
    """Like `contextlib.contextmanager`, but the set-up happens whole or not at all, and the clean-up always.

    A block inside that an interrupt kept from being left, as happens where an ordinary context manager is around it, is
    left when an exception leaves this one.
    """
    manager = contextmanager(function)

    @wraps(function)
    def make(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> AbstractContextManager[_Value]:
        return _Reliable(manager(*args, **kwargs))

    return make


@no_type_check  # see above
class _Reliable(AbstractContextManager, Generic[_Value]):
    def __init__(self, manager: AbstractContextManager[_Value]) -> None:
        self._manager = manager
        self._main = _on_main_thread()
        self._blocks = _blocks.open
        self._place = weakref.ref(self)

    def __enter__(self) -> _Value:
        if not self._main:
            value = self._manager.__enter__()
            self._blocks.append(self._place)
            return value
        _gate.open()
        try:
            value = self._manager.__enter__()
            self._blocks.append(self._place)
        finally:
            try:
                _gate.close()
            except BaseException as interrupt:
                self.__exit__(type(interrupt), interrupt, interrupt.__traceback__)
                raise
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._main:
            _gate.open()
        try:
            if self._place not in self._blocks:  # left already, with a block around it
                return False
            if error is not None and kind is not GeneratorExit:  # which comes to a block at any time
                self._leave_forgotten()
            self._blocks.remove(self._place)
            return self._manager.__exit__(kind, error, traceback)
        finally:
            if self._main:
                _gate.close()

    def _leave_forgotten(self) -> None:
        while self._blocks[-1] is not self._place:
            if (forgotten := self._blocks[-1]()) is None:
                self._blocks.pop()
            else:
                with suppress(Exception):  # the error on its way says more
                    forgotten.__exit__(None, None, None)


_PROTECTED = {_Reliable.__enter__.__code__, _Reliable.__exit__.__code__}
"""Code during which Ctrl-C waits; all uninterrupted functions share one."""


def _protected(frame: FrameType | None) -> bool:
    """Whether protected code is running, in this frame or one that called it."""
    while frame is not None:
        if frame.f_code in _PROTECTED:
            return True
        frame = frame.f_back
    return False
