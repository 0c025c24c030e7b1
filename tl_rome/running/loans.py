"""One thread at a time has a model: hooks, weights and modes belong to the model, not to who set them.

A second thread waits until the first has given the model back; the same thread may take it again and again.
"""

import logging
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

from tl_rome.running.interrupts import give_way, reliable
from tl_rome.sites import HookedModel

_log = logging.getLogger(__name__)
_POLL = 0.05
"""Seconds between looks for Ctrl-C while waiting for a model."""
_PATIENCE = 5.0
"""Seconds of waiting after which the log says what is waited for."""


@dataclass(eq=False)
class Loan:
    """Who has a model."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held by the thread that has it."""
    depth: int = 0
    """How many times that thread has taken it."""
    thread: str = ""
    """Its name."""
    borrowed: bool = False
    """Whether the model's modes are set aside, see `borrowed`."""
    warned: bool = False
    """Whether the log has said that its matrix products are shortened."""


_loans: weakref.WeakKeyDictionary[HookedModel, Loan] = weakref.WeakKeyDictionary()
_registry = threading.Lock()


@reliable
def lent(model: HookedModel) -> Iterator[Loan]:
    """Have a model to oneself.

    Args:
        model: Any; another thread that has it is waited for.
    """
    with _registry:
        loan = _loans.setdefault(model, Loan())
    _acquire(loan, model)
    try:
        loan.depth += 1
        if loan.depth == 1:
            loan.thread = threading.current_thread().name
        yield loan
    finally:
        loan.depth -= 1
        loan.lock.release()


def _acquire(loan: Loan, model: HookedModel) -> None:
    waited = 0.0
    while not loan.lock.acquire(timeout=_POLL):
        give_way()
        if waited < _PATIENCE <= waited + _POLL:
            _log.warning(
                "thread %r waits for thread %r, which is using %s; it goes on when that one is done",
                threading.current_thread().name,
                loan.thread,
                getattr(model.cfg, "model_name", "the model"),
            )
        waited += _POLL
