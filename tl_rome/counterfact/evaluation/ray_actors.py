"""The evaluation on Ray: one model per worker, on one machine or many.

A worker is a Ray actor. Ray restarts one that dies and gives it its batch again; a batch that ends its worker each time
is set aside, so that the others are measured, and is named at the end.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from tl_rome.arguments import Count, NotNegative, Seed, Whole
from tl_rome.counterfact.evaluation.evaluate import USUAL, Evaluator
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.counterfact.evaluation.run import Batch, BatchResult, Identity, Run
from tl_rome.counterfact.evaluation.workers import Editors, Load, Setup, portable_errors
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult
from tl_rome.errors import InputError, WorkerError, require

_log = logging.getLogger(__name__)
_PATIENCE = 60
"""Seconds without any worker before a warning."""
_POLL = 5
"""Seconds between looks for workers that have become ready while all others are busy."""


def evaluate_on_ray(
    load: Load,
    records: Iterable[CounterFactRecord],
    editors: Editors | None = None,
    *,
    store: str | Path,
    workers: Count = 2,
    gpus_per_worker: NotNegative = 0,
    cpus_per_worker: NotNegative = 1,
    retries: Whole = 2,
    batch_size: Count = USUAL,
    config: EvaluationConfig | None = None,
    seed: Seed = 0,
    retry_failed: bool = False,
    progress: bool = True,
) -> list[CaseResult]:
    """Do what `evaluate` does, on many workers.

    Ray is used as it was set up with `ray.init`; else it is set up here, and shut down at the end. `load` and
    `editors`, with what they refer to, must be picklable by Ray.

    Args:
        load: Makes the model in each worker.
        records: Each case_id once.
        editors: Makes editors by name in each worker; None measures the unedited model alone.
        store: Folder of results.
        workers: How many models there are at once.
        gpus_per_worker: That Ray reserves for each; a fraction shares one.
        cpus_per_worker: That Ray reserves for each.
        retries: How often a batch, or the loading of a model, is tried again after it ended its worker.
        batch_size: Records in a batch.
        config: What is measured.
        seed: Of the generated texts.
        retry_failed: See `evaluate`.
        progress: Whether to show a progress bar over records.

    Returns:
        One result per editor and record, in this order.

    Raises:
        MissingPackageError: If Ray is not installed.
        InputError: As for `evaluate`; if there are no workers, or `retries` is negative; or if workers cannot be sent
            `load` or `editors`.
        ModelMismatchError: If workers differ in model or editors; or as for `evaluate`.
        StorageError: As for `evaluate`.
        EditStateError: As for `evaluate`.
        WorkerError: If records were given up, a worker could not be started, or its error cannot be sent; all else is
            stored.
    """
    run = Run(
        records=tuple(records),
        config=config or EvaluationConfig(),
        seed=seed,
        batch_size=batch_size,
        retry_failed=retry_failed,
        progress=progress,
    )
    setup = Setup(load, editors, run.config, seed)
    with _ray() as ray:
        # Of an actor whose own retries are 0, Ray fails calls that find it restarting; here each call has its retries.
        options = {"max_restarts": -1, "max_task_retries": -1}
        packed = _packed(ray, setup)
        actor = ray.remote(num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, **options)(_Worker)
        pool = _Workers(ray, [actor.remote(packed) for _ in range(workers)], retries)
        try:
            return run.fill(Path(store), pool.start(), pool.run)
        finally:
            pool.close()


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


def _packed(ray: ModuleType, setup: Setup) -> Any:
    """A setup that all workers share."""
    try:
        return ray.put(setup)
    except Exception as error:  # objects raise what they like
        raise InputError(
            f"load or editors cannot be sent to a worker ({type(error).__name__}: {_brief(error)}); leave out what "
            "cannot be pickled, such as locks and open files, and make it in the function that uses it"
        ) from error


class _Worker:
    """What runs in an actor. It prepares itself at its first call: Ray reports errors in a constructor as a death."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @cached_property
    def evaluator(self) -> Evaluator:
        return self.setup.evaluator()

    @cached_property
    def _identity(self) -> Identity:
        return self.evaluator.identity

    def identity(self) -> Identity:
        with portable_errors():
            return self._identity

    def run(self, batch: Batch, expected: Identity) -> BatchResult:
        """Measure a batch, unless this worker was restarted with another model or other editors."""
        with portable_errors():
            expected.check_same(self._identity)
            return self.evaluator.run(batch)


class _Workers:
    """Actors that measure batches, in any order; each takes part once it is ready."""

    def __init__(self, ray: ModuleType, actors: list[Any], retries: int) -> None:
        from ray.util import ActorPool

        self._ray, self._actors, self._retries = ray, actors, retries
        self._ready = ActorPool([])
        self._preparing = {actor.identity.options(max_task_retries=retries).remote(): actor for actor in actors}
        self._identity: Identity | None = None
        self._failure: Exception | None = None

    def start(self) -> Identity:
        """Wait for the first actor to be ready; all others must have its identity."""
        while self._identity is None:
            self._admit(_PATIENCE)
        return self._identity

    def run(self, batches: Iterator[Batch]) -> Iterator[BatchResult]:
        """Measure batches; those that end their workers are named once all others are measured."""
        under_way: dict[int, Batch] = {}  # by the first record's number, since a pool does not say which call failed
        for batch in batches:
            self._admit(0)
            while self._ready.has_next() and not self._ready.has_free():
                yield from self._collected(under_way)
            under_way[batch.records[0].case_id] = batch
            self._ready.submit(self._call, batch)
        while self._ready.has_next():
            yield from self._collected(under_way)
        if under_way:
            raise WorkerError(
                f"gave up {_names(under_way.values())}: {self._retries + 1} workers died at each of their batches, the "
                f"last because of: {_brief(self._failure)}; all other records of this step are stored. Look at the "
                "worker's own log, give workers more memory, or continue in the same store with batch_size=1 to find "
                "the record at fault"
            ) from self._failure

    def close(self) -> None:
        """End all actors, whatever they are doing."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _call(self, actor: Any, batch: Batch) -> Any:
        return actor.run.options(max_task_retries=self._retries).remote(batch, self._identity)

    def _collected(self, under_way: dict[int, Batch]) -> Iterator[BatchResult]:
        """The next results, if any arrive within `_POLL` seconds."""
        try:
            with _as_raised(self._ray):
                results = self._ready.get_next_unordered(timeout=_POLL)
        except TimeoutError:
            self._admit(0)
        except self._ray.exceptions.RayError as error:
            self._failure = error
        else:
            del under_way[results[0].result.case_id]
            yield results

    def _admit(self, patience: int) -> None:
        """Admit an actor that has become ready; warn if none has within this many seconds."""
        if not self._preparing:
            return
        ready, _ = self._ray.wait(list(self._preparing), num_returns=1, timeout=patience)
        if patience and not ready:
            _log.warning("no worker is ready yet; the cluster has %s", self._ray.cluster_resources())
        for call in ready:
            actor = self._preparing.pop(call)
            try:
                with _as_raised(self._ray):
                    identity = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                raise WorkerError(
                    f"could not start a worker in {self._retries + 1} attempts, the last ended by: {_brief(error)}; "
                    "look at the worker's own log, give workers more memory, and install what load and editors import "
                    "wherever workers run"
                ) from error
            self._identity = first = self._identity or identity
            first.check_same(identity)
            self._ready.push(actor)


@contextmanager
def _as_raised(ray: ModuleType) -> Iterator[None]:
    """Raise what a worker raised as it was there; that a worker died stays an error of Ray."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or RuntimeError(str(error))) from error


def _names(batches: Iterable[Batch]) -> str:
    numbers = [str(record.case_id) for batch in batches for record in batch.records]
    return f"record{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _brief(error: Exception | None) -> str:
    """Ray's first line; its cause is in the traceback."""
    return str(error).strip().partition("\n")[0].rstrip(".")
