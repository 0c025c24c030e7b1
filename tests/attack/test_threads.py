"""Two threads with one model: each gets what it gets alone, or an error that says why not, and neither hangs."""

import faulthandler
import random
import threading
import time
from itertools import combinations_with_replacement
from typing import Any

from support.attacked import Attacked, same_result
from support.state import changed, process_state

from tl_rome.errors import TLRomeError

SECONDS = 120
"""A pair takes about one; after this long the two wait for each other."""


def side_by_side(attacked: Attacked, names: tuple[str, str], seconds: float) -> list[tuple[str, Any]]:
    """Names and results or exceptions of two jobs that two threads repeat for some time."""
    found: list[tuple[str, Any]] = []
    barrier = threading.Barrier(2)

    def work(name: str) -> None:
        job = attacked.jobs()[name]
        barrier.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            try:
                found.append((name, job()))
            except BaseException as error:
                found.append((name, error))

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        for thread in threads:
            thread.join()
    finally:
        faulthandler.cancel_dump_traceback_later()
    return found


def test_pairs(attacked, outcomes, effort):
    pairs = list(combinations_with_replacement(attacked.jobs(), 2))
    random.Random(effort(1, time.time_ns())).shuffle(pairs)
    alone = {name: job() for name, job in attacked.jobs().items()}
    for number in range(effort(3, 60)):
        names, process = pairs[number % len(pairs)], process_state()
        for name, result in side_by_side(attacked, names, effort(1, 4) / 2):
            pair, other = " beside ".join(names), names[names[0] == name]
            if isinstance(result, TLRomeError):
                outcomes[f"refused: {type(result).__name__}"] += 1
            elif isinstance(result, BaseException):
                outcomes.fault(f"raised {type(result).__name__}", f"{pair}: {result!r:.200}")
            elif same_result(result, alone[name]):
                outcomes["right"] += 1
            else:
                outcomes.fault("wrong result", f"{name} beside {other}")
        if wrong := attacked.broken() or changed(process, process_state()):
            outcomes.fault(f"left behind: {wrong.split(':')[0]}", f"{' beside '.join(names)}: {wrong[:200]}")
            attacked.renew()
    outcomes.check()
