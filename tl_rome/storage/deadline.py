"""Waiting for what may never come: a client's own time limits are for the next byte, not for the whole answer."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

_Result = TypeVar("_Result")


def within(seconds: float | int, work: Callable[[], _Result]) -> _Result:
    """What some work gives, if it does so in time; otherwise it is left to itself, until the process ends.

    Args:
        seconds: How long to wait.
        work: Run in a thread of its own.

    Raises:
        TimeoutError: If it is not done by then.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return results[0]
