"""The evaluation in several processes of one machine, each with a model of its own.

On a CPU, two processes with one thread each do more records in an hour than one with two: an edit is many small steps,
and threads wait for each other at every one. The caller's process alone writes the store.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tl_rome.counterfact.evaluation.evaluate import Evaluator, named_editors
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.counterfact.evaluation.run import Batch, Identity, RecordResult, Run
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult
from tl_rome.editors.protocol import Editor
from tl_rome.errors import InputError, WorkerError
from tl_rome.sites import HookedModel

_GRACE = 5
"""Seconds that a worker has to end by itself."""

Load = Callable[[], HookedModel]
Editors = Callable[[HookedModel], Mapping[str, Editor]]


def evaluate_in_processes(
    load: Load,
    records: Iterable[CounterFactRecord],
    editors: Editors,
    *,
    store: str | Path,
    workers: int = 2,
    batch_size: int = 8,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[CaseResult]:
    """Do what `evaluate` does in several processes; either can go on with a store that the other began.

    The processes share torch's threads of this one. They are started anew, so a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        load: Called once in each process, where it makes the unedited model; it must be defined in a module, or be a
            `functools.partial` of such a function, as it is sent by name.
        records: Each case_id once.
        editors: Called with the model once in each process, where it makes editors by name, the same in all; sent as
            `load` is.
        store: Folder of results, written by this process.
        workers: How many processes; 1 is this one.
        batch_size: Records in a batch; the same worker does it under every editor, so that editors may share work.
        config: What is measured.
        seed: Of the generated texts.
        progress: Whether to show a progress bar over records.

    Returns:
        One result per editor and record, in this order.

    Raises:
        InputError: As for `evaluate`; or if there are no workers.
        ModelMismatchError: If workers differ in model or editors; or as for `evaluate`.
        StorageError: As for `evaluate`.
        WorkerError: If a worker died; what was done before is stored.
    """
    if workers < 1:
        raise InputError(f"{workers=}; give at least one")
    run = Run(
        records=tuple(records), config=config or EvaluationConfig(), seed=seed, batch_size=batch_size, progress=progress
    )
    if workers == 1:
        model = load()
        bench = Evaluator(model, named_editors(editors(model)), run.config, seed)
        return run.fill(Path(store), bench.identity, lambda batches: map(bench.run, batches))
    threads = max(1, torch.get_num_threads() // workers)
    pool: list[_Worker] = []
    try:
        pool += [_Worker(load, editors, run.config, seed, threads) for _ in range(workers)]
        first, *others = [worker.identity() for worker in pool]
        for other in others:
            first.check_same(other)
        return run.fill(Path(store), first, lambda batches: _in_turn(pool, batches))
    finally:
        for worker in pool:
            worker.dismiss()
        for worker in pool:
            worker.end()


def _in_turn(pool: list["_Worker"], batches: Iterator[Batch]) -> Iterator[list[RecordResult]]:
    """Give each worker every n-th batch, and the results in the order of the batches."""
    asked: deque[_Worker] = deque()
    for worker, batch in zip(cycle(pool), batches, strict=False):
        if len(asked) == len(pool):
            yield asked.popleft().answer()
        worker.ask(batch)
        asked.append(worker)
    while asked:
        yield asked.popleft().answer()


class _Worker:
    """A process with a model and editors."""

    def __init__(self, load: Load, editors: Editors, config: EvaluationConfig, seed: int, threads: int) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        setup = (theirs, load, editors, config, seed, threads)
        self._process = context.Process(target=_serve, args=setup, daemon=True)
        self._process.start()
        theirs.close()

    def identity(self) -> Identity:
        """What its results depend on, once it is ready."""
        return self._receive()

    def ask(self, batch: Batch) -> None:
        """Have a batch done."""
        try:
            self._ours.send(batch)
        except OSError:
            raise self._death() from None

    def answer(self) -> list[RecordResult]:
        """The results of the batch that it was given."""
        return self._receive()

    def dismiss(self) -> None:
        """Let it end by itself, once it has nothing to do."""
        self._ours.close()

    def end(self) -> None:
        """See that it ends soon, whatever it is doing."""
        self._process.join(timeout=_GRACE)
        self._process.terminate()
        self._process.join()

    def _receive(self) -> Any:
        try:
            found = self._ours.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(found, Exception):
            raise found
        return found

    def _death(self) -> WorkerError:
        self._process.join()
        return WorkerError(
            f"a worker process ended with exit code {self._process.exitcode}; what was done before is stored: run "
            "again to go on, with fewer workers if memory ran out"
        )


def _serve(
    connection: Connection, load: Load, editors: Editors, config: EvaluationConfig, seed: int, threads: int
) -> None:
    """What runs in a worker: say who it is, then answer batches until the other side is gone."""
    torch.set_num_threads(threads)
    try:
        model = load()
        bench = Evaluator(model, named_editors(editors(model)), config, seed)
        connection.send(bench.identity)
        while True:
            connection.send(bench.run(connection.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        connection.send(error)
