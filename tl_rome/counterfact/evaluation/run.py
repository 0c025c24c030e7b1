"""A batched run and its store; the caller chooses which processes measure.

A batch holds all that measuring needs from the store, and results come back in any order. One process writes the
store, whichever processes measure, so a run begun in one way can be continued in another.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_rome.counterfact.evaluation.measure import EvaluationConfig, States
from tl_rome.counterfact.evaluation.store import RunStore, editor_line, unedited_line
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import UNEDITED, CaseResult
from tl_rome.editors.identity import resumable, settings_hash
from tl_rome.errors import InputError, ModelMismatchError
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import Ledger
from tl_rome.storage.text import visible

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What results depend on besides the run's own settings, as JSON."""

    model: Mapping[str, Any]
    """See `model_settings`."""
    editors: Mapping[str, Any]
    """By name, see `describe_editor`."""

    def check_same(self, other: "Identity") -> None:
        """Refuse a worker that differs from another.

        Raises:
            ModelMismatchError: If model or editors differ.
        """
        names = {**self.editors, **other.editors}
        editors = [name for name in names if self.editors.get(name) != other.editors.get(name)]
        differing = [*["the model"] * (self.model != other.model), *(f"the editor {name!r}" for name in editors)]
        if differing:
            raise ModelMismatchError(
                f"workers differ in {', '.join(differing)}; load the same model in each, prepare editors with fixed "
                "seeds, and read covariances from a file that all share"
            )


@dataclass(frozen=True, eq=False)
class Batch:
    """Records to be measured together."""

    records: tuple[CounterFactRecord, ...]
    """Those to measure."""
    editor: str | None = None
    """Under this editor; None is the unedited model."""
    before: tuple[States, ...] = ()
    """With an editor: the unedited model's states of each record."""

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        """The records of several batches, at least one, under the editor that all share."""
        records = tuple(record for batch in batches for record in batch.records)
        return cls(records, batches[0].editor, tuple(states for batch in batches for states in batch.before))

    def singles(self) -> Iterator["Batch"]:
        """Each record in a batch of its own."""
        for place, record in enumerate(self.records):
            yield Batch((record,), self.editor, self.before[place : place + 1])


@dataclass(frozen=True, eq=False)
class RecordResult:
    """What measuring gave for one record."""

    result: CaseResult
    """Without names of editor, model and data set: those are in the headers of a store's files."""
    states: States = field(default_factory=dict)
    """Of the unedited model; empty under an editor."""


BatchResult = Sequence[RecordResult]
"""Of all records of a batch."""
BatchRunner = Callable[[Iterator[Batch]], Iterable[BatchResult]]
"""Measures batches; results may come in any order."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be measured, and in which batches.

    Raises:
        InputError: If there are no records, two with one case_id, a batch_size below 1, or no such shard.
    """

    records: tuple[CounterFactRecord, ...]
    """The data set, each case_id once."""
    config: EvaluationConfig
    """What is measured."""
    seed: int
    """Of the generated texts."""
    batch_size: int
    """Records in a batch."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): only every n-th record from the i-th on."""
    retry_failed: bool = False
    """Whether records that failed in an earlier run are measured again."""
    progress: bool = True
    """Whether to show a progress bar over records."""

    def __post_init__(self) -> None:
        distinct, (part, parts) = {record.case_id for record in self.records}, self.shard
        if not self.records or len(distinct) < len(self.records) or self.batch_size < 1:
            raise InputError(
                f"{len(distinct)} case_ids of {len(self.records)} records and batch_size={self.batch_size}; "
                "give at least one record, each with a case_id of its own, and a batch_size of at least 1"
            )
        if not 0 <= part < parts or not self.chosen:
            raise InputError(
                f"shard {part} of {parts} of {len(self.records)} records; "
                "give (i, n) with i from 0 to n - 1, and n at most as many as there are records"
            )

    @property
    def chosen(self) -> tuple[CounterFactRecord, ...]:
        """Records of the shard."""
        return self.records[self.shard[0] :: self.shard[1]]

    def fill(self, folder: Path, identity: Identity, runner: BatchRunner) -> list[CaseResult]:
        """Compute the results missing from a store and append them batch by batch.

        Args:
            folder: Of the store.
            identity: Of the model and the editors that measure.
            runner: Called once for the unedited model, and once for each editor.

        Returns:
            One result per editor and record of the shard, in this order.

        Raises:
            StorageError: See `open_ledger`; and whatever `runner` raises.
        """
        store = RunStore(folder, self._settings(identity))
        editors = {name: resumable(name, described) for name, described in identity.editors.items()}
        self._unedited(store, runner)
        for name, described in editors.items():
            self._edited(store, name, described, runner)
        found = store.results([(name, settings_hash(described)) for name, described in editors.items()])
        order = {name: place for place, name in enumerate(editors)}
        places = {record.case_id: place for place, record in enumerate(self.chosen)}
        mine = [result for result in found if result.case_id in places]
        warn_of_failures(sum(result.error is not None for result in mine), len(mine))
        return sorted(mine, key=lambda result: (order.get(result.editor, 0), places[result.case_id]))

    def _settings(self, identity: Identity) -> dict[str, Any]:
        """What lines of different runs must share; not the shard, so that shards can be joined."""
        dataset = digest([record.to_dict() for record in sorted(self.records, key=lambda record: record.case_id)])
        about = {"dataset": dataset, "records": len(self.records), "seed": self.seed}
        return {**identity.model, **about, **self.config.describe()}

    def _unedited(self, store: RunStore, runner: BatchRunner) -> None:
        with store.open_unedited() as ledger:
            left = self._left(ledger)
            batches = (Batch(records) for records in self._batches(left))
            for batch in self._shown(runner(batches), len(left), UNEDITED):
                for found in batch:
                    if found.states:
                        store.put_states(found.result.case_id, found.states)
                ledger.append(*(unedited_line(found.result) for found in batch))

    def _edited(self, store: RunStore, name: str, described: Any, runner: BatchRunner) -> None:
        before = store.unedited()

        def states(record: CounterFactRecord) -> States:
            return store.states(record.case_id) if self.config.compared else {}

        with store.open_editor(name, settings_hash(described), described) as ledger:
            left = self._left(ledger)
            if failed := {number for number in left if before[number].before is None}:
                ledger.append(*(editor_line(before[number]) for number in sorted(failed)))
            batches = (Batch(records, name, tuple(map(states, records))) for records in self._batches(left - failed))
            for batch in self._shown(runner(batches), len(left - failed), name):
                ledger.append(*(editor_line(found.result) for found in batch))

    def _left(self, ledger: Ledger) -> set[int]:
        """Numbers of the records that the ledger lacks, or has as failures that are to be tried again."""
        last = {line["case_id"]: line for line in ledger.records}
        done = {number for number, line in last.items() if not self.retry_failed or line.get("error") is None}
        left = {record.case_id for record in self.chosen} - done
        if left:
            ledger.check_writable()
        return left

    def _batches(self, left: set[int]) -> Iterator[tuple[CounterFactRecord, ...]]:
        """Records, batched as in a run that was never interrupted."""
        for first in range(0, len(self.chosen), self.batch_size):
            batch = tuple(each for each in self.chosen[first : first + self.batch_size] if each.case_id in left)
            if batch:
                yield batch

    def _shown(self, batches: Iterable[BatchResult], left: int, name: str) -> Iterator[BatchResult]:
        """Report failures and progress."""
        count = {"total": len(self.chosen), "initial": len(self.chosen) - left, "unit": "record"}
        with tqdm(desc=visible(name), disable=not self.progress, **count) as bar:
            for batch in batches:
                for found in batch:
                    if found.result.error is not None:
                        _log.warning("left out record %d: %s", found.result.case_id, found.result.error)
                yield batch
                bar.update(len(batch))


def warn_of_failures(failed: int, results: int) -> None:
    """Log that some of the results of a run are failures, if they are."""
    if failed:
        _log.warning(
            "%d of %d results are failures, which are kept; the same call with retry_failed=True, on the command "
            "line --retry-failed, tries them again",
            failed,
            results,
        )
