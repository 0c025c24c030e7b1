"""Running editors over records: score before, edit, score after, generate; nothing is ever written to the model.

The unedited model is measured once for all editors. Edits are made and measured in batches, each record in the model
with its own edit; where one record of a batch fails, each is tried alone. What is done is in the store at once.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from tqdm.auto import tqdm

from tl_rome.counterfact.editor_settings import describe_editor, editor_hash, editor_name
from tl_rome.counterfact.measure import EvaluationConfig, compare, measure
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult
from tl_rome.counterfact.run_store import RunStore, editor_line, unedited_line
from tl_rome.counterfact.summary import UNEDITED
from tl_rome.editors.edit import Edit
from tl_rome.editors.virtual import AnyEdit, VirtualEdits
from tl_rome.errors import InputError, StorageError, TLRomeError
from tl_rome.facts import EditRequest
from tl_rome.ledger import Ledger, model_settings
from tl_rome.patching.trace_store import digest
from tl_rome.sites import HookedModel

T = TypeVar("T")
Editor = Callable[[HookedModel, EditRequest], AnyEdit]
"""Makes an edit of one request and leaves the model as found; one with `each(model, requests)` makes many at once."""
_log = logging.getLogger(__name__)


def evaluate(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editor: Editor | Mapping[str, Editor] | None = None,
    *,
    store: str | Path | None = None,
    config: EvaluationConfig | None = None,
    together: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> list[CaseResult]:
    """Measure what editors do to each record, each edit in a model of its own; or go on with an earlier run.

    A record that cannot be measured or edited is logged, and has a result with `error`.

    Args:
        model: Unedited; left as found.
        records: Each case_id once.
        editor: Such as `Rome.prepare(model)`; several by name, as in `{"rome": ..., "ft": ...}`; None measures the
            unedited model alone.
        store: Folder of results, made if needed; by default nothing is kept on disk.
        config: What is measured.
        together: Records edited and measured at once, which are lost together when the run dies; bounds memory.
        seed: Of the generated texts.
        progress: Whether to show a progress bar over records.

    Returns:
        One result per editor and record, in this order.

    Raises:
        InputError: If there are no records, two of one case_id, or no room for one in a batch.
        ModelMismatchError: If the store or an editor belongs to another model, or to this one after an edit.
        StorageError: If the store was made with other records or settings, is damaged, in use, or cannot be written.
    """
    records, config = list(records), config or EvaluationConfig()
    numbers = [record.case_id for record in records]
    if not records or len(set(numbers)) < len(numbers) or together < 1:
        raise InputError(
            f"{len(set(numbers))} case_ids of {len(numbers)} records and {together=}; "
            "give at least one record, each with a case_id of its own, and at least one at once"
        )
    editors = _named(editor)
    with _folder(store) as folder:
        run = _Run(model, records, config, together, seed, RunStore(folder, _settings(model, records, config, seed)))
        run.unedited(progress)
        for name, each in editors.items():
            run.edited(name, each, progress)
        found = run.store.results([(name, editor_hash(each)) for name, each in editors.items()])
    order = {name: place for place, name in enumerate(editors)}
    places = {number: place for place, number in enumerate(numbers)}
    return sorted(found, key=lambda result: (order.get(result.editor, 0), places[result.case_id]))


def _named(editor: Editor | Mapping[str, Editor] | None) -> Mapping[str, Editor]:
    if editor is None:
        return {}
    named = editor if isinstance(editor, Mapping) else {editor_name(editor): editor}
    if UNEDITED in named:
        raise InputError(f"{UNEDITED!r} is the name of the model without edits; name the editor otherwise")
    return named


@contextmanager
def _folder(store: str | Path | None) -> Iterator[Path]:
    if store is not None:
        yield Path(store)
        return
    with TemporaryDirectory(prefix="tl_rome-") as folder:
        yield Path(folder)


def _settings(
    model: HookedModel, records: Sequence[CounterFactRecord], config: EvaluationConfig, seed: int
) -> dict[str, Any]:
    dataset = digest([record.to_dict() for record in sorted(records, key=lambda record: record.case_id)])
    return {**model_settings(model), "dataset": dataset, "records": len(records), "seed": seed, **config.describe()}


@dataclass(frozen=True)
class _Run:
    """One run: what is measured, and where results go."""

    model: HookedModel
    records: Sequence[CounterFactRecord]
    config: EvaluationConfig
    together: int
    seed: int
    store: RunStore

    def unedited(self, progress: bool) -> None:
        """Measure the unedited model on the records that are still to be done."""

        def do(batch: Sequence[CounterFactRecord]) -> list[CaseResult]:
            readings = measure(self.model, batch, self.config, seed=self.seed)
            for record, reading in zip(batch, readings, strict=True):
                if reading.states:
                    self.store.put_states(record.case_id, reading.states)
            return [
                self._result(record, before=reading.measurement)
                for record, reading in zip(batch, readings, strict=True)
            ]

        with self.store.open_unedited() as ledger:
            for batch in self._left(ledger, UNEDITED, progress):
                ledger.append(*map(unedited_line, self._attempt(batch, do)))

    def edited(self, name: str, editor: Editor, progress: bool) -> None:
        """Make and measure the edits that are still to be done."""
        before, config = self.store.unedited(), editor_hash(editor)

        def do(batch: Sequence[CounterFactRecord]) -> list[CaseResult]:
            known = [record for record in batch if before[record.case_id].before is not None]
            failed = [self._result(r, error=before[r.case_id].error) for r in batch if r not in known]
            return failed + self._edit_and_measure(known, editor)

        with self.store.open_editor(name, config, describe_editor(editor)) as ledger:
            for batch in self._left(ledger, name, progress):
                ledger.append(*map(editor_line, self._attempt(batch, do)))

    def _edit_and_measure(self, batch: Sequence[CounterFactRecord], editor: Editor) -> list[CaseResult]:
        if not batch:
            return []
        started = time.perf_counter()
        edits = make_edits(self.model, [record.request for record in batch], editor)
        shared = (time.perf_counter() - started) / len(batch)
        readings = measure(self.model, batch, self.config, seed=self.seed, edits=VirtualEdits(self.model, edits))
        results = []
        for record, edit, reading in zip(batch, edits, readings, strict=True):
            before = self.store.states(record.case_id) if reading.states else {}
            moved = compare(self.model, before, reading.states)
            seconds = edit.receipt.seconds if isinstance(edit, Edit) else shared
            results.append(self._result(record, after=reading.measurement, divergence=moved, seconds=seconds))
        return results

    def _result(self, record: CounterFactRecord, **figures: Any) -> CaseResult:
        return CaseResult(
            case_id=record.case_id,
            rewrite=record.requested_rewrite,
            editor="",  # the file's header knows
            config="",
            model=self.store.settings["model"],
            dataset=self.store.settings["dataset"],
            **figures,
        )

    def _left(self, ledger: Ledger, name: str, progress: bool) -> Iterator[list[CounterFactRecord]]:
        """Batches of records that the ledger lacks; the same in an interrupted run as in one that was not."""
        done = {line["case_id"] for line in ledger.records}
        with tqdm(total=len(self.records), initial=len(done), desc=name, unit="record", disable=not progress) as bar:
            for first in range(0, len(self.records), self.together):
                batch = [r for r in self.records[first : first + self.together] if r.case_id not in done]
                if batch:
                    yield batch
                    bar.update(len(batch))

    def _attempt(
        self, batch: Sequence[CounterFactRecord], do: Callable[[Sequence[CounterFactRecord]], list[CaseResult]]
    ) -> list[CaseResult]:
        """Do a batch; where that fails, each record alone, to leave out the one at fault."""
        try:
            return do(batch)
        except StorageError:
            raise
        except TLRomeError as error:
            if len(batch) > 1:
                return [result for record in batch for result in self._attempt([record], do)]
            _log.warning("left out record %d: %s", batch[0].case_id, error)
            return [self._result(batch[0], error=f"{type(error).__name__}: {error}")]


def make_edits(model: HookedModel, requests: Sequence[EditRequest], editor: Editor) -> list[AnyEdit]:
    """An edit for each request, made together where the editor can.

    Raises:
        TypeError: If what is made are not as many edits.
        TLRomeError: As the editor does.
    """
    together = getattr(editor, "each", None)
    edits = list(together(model, requests)) if together else [editor(model, request) for request in requests]
    if len(edits) != len(requests) or not all(isinstance(edit, AnyEdit) for edit in edits):
        kinds = ", ".join(sorted({type(edit).__name__ for edit in edits}))
        raise TypeError(
            f"{editor!r} made {len(edits)} objects ({kinds}) of {len(requests)} requests; return an Edit each"
        )
    return edits
