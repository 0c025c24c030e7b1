"""The evaluation on Ray: one model per worker, on one machine or many; the caller's process alone writes the store.

A worker is a Ray actor. One that dies is replaced, and its batch is given out again; a batch whose workers die each
time is set aside, so that the others are done, and named at the end.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from tl_rome.counterfact.evaluation.evaluate import Bench, named_editors
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.counterfact.evaluation.run import Batch, Found, Identity, Run
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult
from tl_rome.editors.protocol import Editor
from tl_rome.errors import InputError, WorkerError, require
from tl_rome.sites import HookedModel

_log = logging.getLogger(__name__)
_PATIENCE = 60
"""Seconds without any worker before a warning."""

Load = Callable[[], HookedModel]
Editors = Callable[[HookedModel], Mapping[str, Editor]]


def evaluate_on_ray(
    load: Load,
    records: Iterable[CounterFactRecord],
    editors: Editors | None = None,
    *,
    store: str | Path,
    workers: int = 2,
    gpus_per_worker: float = 0,
    cpus_per_worker: float = 1,
    retries: int = 2,
    together: int = 8,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[CaseResult]:
    """Do what `evaluate` does, on many workers; either can go on with a store that the other began.

    Ray is used as it was set up with `ray.init`; else it is set up here, and shut down at the end.

    Args:
        load: Called once in each worker, where it makes the unedited model; with what it refers to, it must be
            something that Ray can send.
        records: Each case_id once.
        editors: Called with the model once in each worker, where it makes editors by name, the same in all; None
            measures the unedited model alone.
        store: Folder of results, written by this process.
        workers: How many models there are at once.
        gpus_per_worker: That Ray reserves for each; a fraction shares one.
        cpus_per_worker: That Ray reserves for each.
        retries: How often a batch is given out again after its worker died, and a worker replaced that died while it
            was loading.
        together: Records in a batch.
        config: What is measured.
        seed: Of the generated texts.
        progress: Whether to show a progress bar over records.

    Returns:
        One result per editor and record, in this order.

    Raises:
        MissingPackageError: If Ray is not installed.
        InputError: As for `evaluate`; or if there are no workers, or `retries` is negative.
        ModelMismatchError: If workers differ in model or editors; or as for `evaluate`.
        StorageError: As for `evaluate`.
        WorkerError: If records were given up, or no worker could be started; all else is stored.
    """
    if workers < 1 or retries < 0:
        raise InputError(f"{workers=} and {retries=}; give at least one worker, and no negative number of retries")
    run = Run(
        records=tuple(records), config=config or EvaluationConfig(), seed=seed, together=together, progress=progress
    )
    setup = (load, editors or _no_editors, run.config, seed)
    with _ray() as ray:
        actor = ray.remote(max_restarts=0, num_cpus=cpus_per_worker, num_gpus=gpus_per_worker)(_Worker)
        pool = _Pool(ray, actor, setup, retries)
        try:
            return run.fill(Path(store), pool.start(workers), pool.do)
        finally:
            pool.close()


def _no_editors(model: HookedModel) -> Mapping[str, Editor]:
    return {}


@contextmanager
def _ray() -> Iterator[ModuleType]:
    require("ray", extra="ray")
    import ray

    if ray.is_initialized():
        yield ray
        return
    ray.init()
    try:
        yield ray
    finally:
        ray.shutdown()


class _Worker:
    """What runs in an actor. Errors in its constructor would look like its death, so it has none."""

    def prepare(self, load: Load, editors: Editors, config: EvaluationConfig, seed: int) -> Identity:
        model = load()
        self.bench = Bench(model, named_editors(editors(model)), config, seed)
        return self.bench.identity

    def do(self, batch: Batch) -> list[Found]:
        return self.bench.do(batch)


class _Pool:
    """Actors that do batches, in any order.

    Each has one call under way at most: to prepare itself, or to do a batch.
    """

    def __init__(self, ray: ModuleType, actor: Any, setup: tuple[Any, ...], retries: int) -> None:
        self._ray, self._actor, self._setup, self._retries = ray, actor, setup, retries
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._preparing: dict[Any, Any] = {}  # actors by call
        self._working: dict[Any, tuple[Any, Batch, int]] = {}  # actors, batches, and how often those were given out
        self._identity: Identity | None = None
        self._failed_starts = 0

    def start(self, workers: int) -> Identity:
        """Have actors started, and wait for the first: all others must be like it."""
        for _ in range(workers):
            self._hire()
        while self._identity is None:
            self._greet(self._finished())
        return self._identity

    def do(self, batches: Iterator[Batch]) -> Iterator[list[Found]]:
        """Do batches; those that cannot be done are named after all others were."""
        waiting: deque[tuple[Batch, int]] = deque()
        given_up: list[Batch] = []
        reason: Exception | None = None
        while True:
            if not waiting:
                waiting.extend((batch, 1) for batch in islice(batches, 1))
            if waiting and self._idle:
                actor, (batch, times) = self._idle.pop(), waiting.popleft()
                self._working[actor.do.remote(batch)] = actor, batch, times
                continue
            if not waiting and not self._working:
                break
            call = self._finished()
            if call in self._preparing:
                self._greet(call)
                continue
            actor, batch, times = self._working.pop(call)
            try:
                found = self._answer(call)
            except self._ray.exceptions.RayError as error:
                _log.warning("a worker died at %s, time %d: %s", _names([batch]), times, _brief(error))
                self._replace(actor)
                if times <= self._retries:
                    waiting.appendleft((batch, times + 1))
                else:
                    given_up, reason = [*given_up, batch], error
            else:
                self._idle.append(actor)
                yield found
        if given_up:
            raise WorkerError(
                f"gave up {_names(given_up)}: {self._retries + 1} workers died at each batch of them, lastly of: "
                f"{_brief(reason)}; all other records of this step are stored. Look at the worker's own log, give "
                "workers more memory, or go on in the same store with together=1 to find the record at fault"
            ) from reason

    def close(self) -> None:
        """End all actors, whatever they are doing."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _hire(self) -> None:
        actor = self._actor.remote()
        self._actors.append(actor)
        self._preparing[actor.prepare.remote(*self._setup)] = actor

    def _replace(self, actor: Any) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor)  # it may live where only its answer was lost
        self._hire()

    def _finished(self) -> Any:
        """Wait until a call has ended, well or badly."""
        calls = [*self._working, *self._preparing]
        ended, _ = self._ray.wait(calls, num_returns=1, timeout=None if self._working else _PATIENCE)
        while not ended:
            _log.warning("no worker is ready yet; the cluster has %s", self._ray.cluster_resources())
            ended, _ = self._ray.wait(calls, num_returns=1, timeout=_PATIENCE)
        return ended[0]

    def _answer(self, call: Any) -> Any:
        """What a call returned; an error that it raised is raised as it was there, that of a death is Ray's."""
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause or RuntimeError(str(error))) from error

    def _greet(self, call: Any) -> None:
        """Take an actor that prepared itself among the idle ones, or try another if it died of that."""
        actor = self._preparing.pop(call)
        try:
            found = self._answer(call)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts > self._retries:
                raise WorkerError(
                    f"could not start a worker in {self._failed_starts} attempts, lastly because of: {_brief(error)}; "
                    "look at the worker's own log, give workers more memory, and install what load and editors import "
                    "wherever workers run"
                ) from error
            self._replace(actor)
            return
        self._failed_starts = 0
        self._idle.append(actor)
        self._identity = first = self._identity or found
        first.check_same(found)


def _names(batches: Iterable[Batch]) -> str:
    numbers = [str(record.case_id) for batch in batches for record in batch.records]
    return f"record{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _brief(error: Exception | None) -> str:
    """Ray's first line; what caused it is told with the traceback."""
    return str(error).strip().partition("\n")[0].rstrip(".")
