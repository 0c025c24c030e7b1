"""The evaluation in several processes of one machine, each with a model of its own.

On a CPU, two processes with one thread each evaluate more records per hour than one with two: an edit is many small
steps, and threads wait for each other at every one.
"""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from threading import RLock, Thread

import torch
from tqdm import tqdm

from tl_rome.arguments import Count, Seed
from tl_rome.counterfact.evaluation.evaluate import USUAL, Evaluator
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.counterfact.evaluation.run import Batch, BatchResult, Identity, Run
from tl_rome.counterfact.evaluation.workers import Editors, Load, Setup, portable_errors
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult
from tl_rome.errors import WorkerError


def evaluate_in_processes(
    load: Load,
    records: Iterable[CounterFactRecord],
    editors: Editors | None = None,
    *,
    store: str | Path,
    workers: Count = 2,
    batch_size: Count | None = None,
    config: EvaluationConfig | None = None,
    seed: Seed = 0,
    retry_failed: bool = False,
    progress: bool = True,
) -> list[CaseResult]:
    """Do what `evaluate` does in several processes, which divide the torch threads of this one among them.

    Processes are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`, and `load` and
    `editors` are defined in modules, or are `functools.partial` of such functions.

    Args:
        load: Makes the model in each process.
        records: Each case_id once.
        editors: Makes editors by name in each process; None measures the unedited model alone.
        store: Folder of results.
        workers: How many processes; 1 is this one.
        batch_size: Records in a batch; the same worker takes it under every editor, so that editors can share work. By
            default 8, or for one worker what `evaluate` chooses.
        config: What is measured.
        seed: Of the generated texts.
        retry_failed: See `evaluate`.
        progress: Whether to show a progress bar over records.

    Returns:
        One result per editor and record, in this order.

    Raises:
        InputError: As for `evaluate`; if there are no workers; or if `load` or `editors` cannot be sent to them.
        ModelMismatchError: If workers differ in model or editors; or as for `evaluate`.
        StorageError: As for `evaluate`.
        EditStateError: As for `evaluate`.
        WorkerError: If a worker died, or raised an error that cannot be sent; what was done before is stored.
    """
    run = Run(
        records=tuple(records),
        config=config or EvaluationConfig(),
        seed=seed,
        batch_size=batch_size or USUAL,
        retry_failed=retry_failed,
        progress=progress,
    )
    setup = Setup(load, editors, run.config, seed)
    if workers == 1:
        evaluator = setup.evaluator()
        run = replace(run, batch_size=batch_size or evaluator.batch_size)
        return run.fill(Path(store), evaluator.identity, lambda batches: map(evaluator.run, batches))
    packed = setup.packed()
    with _executors(workers) as executors:
        with _uninterrupted():
            asked = [each.submit(_prepare, packed) for each in executors]
        first, *others = [ready.result() for ready in asked]
        for other in others:
            first.check_same(other)
        return run.fill(Path(store), first, lambda batches: _in_turn(executors, batches))


@contextmanager
def _executors(workers: int) -> Iterator[list[ProcessPoolExecutor]]:
    """Executors of one process each, so that the caller decides which process does a batch."""
    threads, context, others = max(1, torch.get_num_threads() // workers), get_context("spawn"), set(active_children())
    executors = [
        ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(threads,)) for _ in range(workers)
    ]
    try:
        yield executors
    except BaseException as error:
        for process in set(active_children()) - others:
            process.terminate()  # rather than wait for what it is doing
        if isinstance(error, BrokenProcessPool):
            raise WorkerError(
                "a worker process ended abruptly; what was done before is stored: run again to go on, with fewer "
                "workers if memory ran out"
            ) from error
        raise
    finally:
        for executor in executors:
            executor.shutdown(cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while processes are started, which inherit that: it is for the caller's process alone."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    ensure_running()  # before, since it lets Ctrl-C through again once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_turn(executors: Sequence[ProcessPoolExecutor], batches: Iterator[Batch]) -> Iterator[BatchResult]:
    """Give each executor every n-th batch, and the results in the order of the batches."""
    asked: deque[Future[BatchResult]] = deque()
    for executor, batch in zip(cycle(executors), batches, strict=False):
        if len(asked) == len(executors):
            yield asked.popleft().result()
        asked.append(executor.submit(_run, batch))
    while asked:
        yield asked.popleft().result()


_ready: list[Evaluator] = []
"""In a worker, which lives for one call of `evaluate_in_processes`: its evaluator. Empty in every other process."""


def _begin(threads: int) -> None:
    Thread(target=_end_with_caller, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller's process, which ends its workers
    tqdm.set_lock(RLock())  # its own is a named semaphore, which a terminated process leaves behind with a complaint
    torch.set_num_threads(threads)


def _end_with_caller() -> None:
    """End this process, whatever it is doing, when the caller's ends without having ended it, as when it is killed."""
    caller = parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def _prepare(packed: bytes) -> Identity:
    """Not part of `_begin`, since an executor does not report what its initializer raised."""
    with portable_errors():
        _ready.append(Setup.unpacked(packed).evaluator())
        return _ready[0].identity


def _run(batch: Batch) -> BatchResult:
    with portable_errors():
        return _ready[0].run(batch)
