"""Facts in one model, scored by their number: what sequential and mass editing have in common.

In a series batch after batch is written into the unedited model, each on top of those before it, and all facts so far
are scored after some of them.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from tl_rome.counterfact.evaluation.guard import WeightGuard
from tl_rome.counterfact.experiments.batches import Batches
from tl_rome.counterfact.experiments.curve import Curve
from tl_rome.counterfact.experiments.lines import FIELDS, Lines, measured_line
from tl_rome.counterfact.experiments.restored import Written, restored
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import Conventions
from tl_rome.editors.edits.written import check_writable
from tl_rome.editors.identity import describe_editor, resumable
from tl_rome.editors.mass.editor import MassEditor
from tl_rome.editors.protocol import Editor
from tl_rome.errors import InputError, NumericsError
from tl_rome.facts import EditRequest
from tl_rome.running.borrowed import borrowed
from tl_rome.running.packed import packed_matrices
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import model_settings, open_ledger
from tl_rome.storage.text import visible

MAX_NLL_RISE = 3.0
"""Nats per token that plain sentences may become less likely before a model counts as broken: twenty times."""
_log = logging.getLogger(__name__)


def check_counts(records: Sequence[CounterFactRecord], counts: Sequence[int]) -> None:
    """Refuse numbers of facts that the records do not allow.

    Raises:
        InputError: If a number is not from 1 to that of the records, or two records have one case_id.
    """
    if not counts or min(counts) < 1 or max(counts) > len(records):
        raise InputError(
            f"counts {', '.join(map(str, counts)) or '(none)'} with {len(records)} records; "
            f"give numbers of facts from 1 to {len(records)}, or more records"
        )
    numbers = {record.case_id for record in records}
    if len(numbers) < len(records):
        raise InputError(f"{len(numbers)} case_ids of {len(records)} records; give each record a case_id of its own")


@dataclass(frozen=True)
class ManyFacts:
    """One editor's run, as lines of a ledger: one for each number of facts; 0 is the unedited model with all facts."""

    model: HookedModel
    records: Sequence[CounterFactRecord]
    editor: Editor
    name: str
    batch: int | None
    """Facts that are written together, 1 but for mass editors; None writes each number at once, into the unedited
    model."""
    store: Path | None
    max_nll_rise: float | None
    """See `MAX_NLL_RISE`; None goes on with any model."""
    progress: bool

    def result(
        self, counts: Sequence[int], *, first: int | None, conventions: Conventions, seed: int
    ) -> SequentialResult:
        """The figures at each number of facts, as far as the model is not broken; missing ones are computed.

        Args:
            counts: Numbers of facts, each at the end of a batch.
            first: How many facts from the first are scored by themselves too.
            conventions: Whose conventions the figures follow.
            seed: Of the bootstrap.

        Raises:
            InputError: If the facts of a batch repeat or contradict each other, or one of them cannot be written.
            UnsupportedModelError: If weights are packed, since facts are written on top of each other.
            TLRomeError: As `sequential_edits` does.
        """
        counts = sorted(set(counts))
        check_writable(self.model, [packed.place for packed in packed_matrices(self.model)])
        if isinstance(self.editor, MassEditor):
            for batch in self._series(counts)[-1]:
                self.editor.check(self.model, self._requests(batch))
        with borrowed(self.model), self._opened() as lines:
            stopped = self._complete(counts, lines)
        if stopped is not None:
            _log.warning("%s: %s", visible(self.name), stopped)
        reached = self._reached(counts, lines)
        cases = {count: lines.cases(count) for count in reached}

        def curve(most: int | None) -> Curve:
            scored = [case for found in cases.values() for case in found[:most]]
            summary = summarize(scored, conventions=conventions, seed=seed)
            return Curve.of(summary, self.name, "facts", {count: str(count) for count in reached})

        def figures(name: str) -> tuple[float, ...]:
            return tuple(lines.known[count][name] for count in (0, *reached))

        failed = {int(case): reason for case, reason in lines.known[reached[-1]]["failed"].items()}
        alone, texts = None if first is None else curve(first), (figures("text_nll"), figures("text_entropy"))
        return SequentialResult(curve(None), *texts, figures("growth"), failed, alone, stopped)

    def _series(self, counts: Sequence[int]) -> list[list[range]]:
        """Indices of the records of each batch; the last series has the largest number."""
        if self.batch is None:
            return [[range(count)] for count in counts]
        return [[range(start, start + self.batch) for start in range(0, counts[-1], self.batch)]]

    def _requests(self, batch: range) -> list[EditRequest]:
        return [self.records[index].request for index in batch]

    @contextmanager
    def _opened(self) -> Iterator[Lines]:
        """The lines that there are."""
        if self.store is None:
            yield Lines()
            return
        settings = {
            **model_settings(self.model),
            "dataset": digest([record.to_dict() for record in self.records]),
            "editor": resumable(self.name, describe_editor(self.editor)),
            "batch": self.batch,
        }
        with open_ledger(self.store / "scores.jsonl", "scores by number of facts", settings, FIELDS) as ledger:
            yield Lines({line["count"]: line for line in ledger.records}, ledger)

    def _complete(self, counts: Sequence[int], lines: Lines) -> str | None:
        """Add the lines that are missing; why not all of them, if so."""
        guard = WeightGuard(self.model, [self.editor])
        if 0 not in lines.known:
            lines.add(measured_line(self.model, self.records, 0, 0.0, {}))
        for batches in self._series(counts):
            stopped = self._write(batches, [batch.stop for batch in batches if batch.stop in counts], lines, guard)
            if stopped is not None:
                return stopped
        return None

    def _reached(self, counts: Sequence[int], lines: Lines) -> list[int]:
        """The numbers up to the first with which the model is broken."""
        reached = []
        for count in counts:
            if count not in lines.known:
                break
            reached.append(count)
            if lines.broken(count, self.max_nll_rise) is not None:
                break
        return reached

    def _write(self, batches: Sequence[range], counts: Sequence[int], lines: Lines, guard: WeightGuard) -> str | None:
        """Write a series as far as lines of some numbers are missing, and add these; why it ended early, if it did."""
        missing = [count for count in counts if count not in lines.known]
        known = (lines.broken(count, self.max_nll_rise) for count in counts if count in lines.known)
        if (stopped := next(filter(None, known), None)) is not None or not missing:
            return stopped
        maker = Batches(self.model, self.editor, self.name, guard, self.store, self.batch is not None, self.progress)
        failed: dict[str, str] = {}
        with (
            restored(self.model) as written,
            tqdm(total=missing[-1], desc=visible(self.name), unit="fact", disable=not self.progress) as bar,
        ):
            for batch in batches:
                if batch.stop > missing[-1]:
                    break
                self._add(batch, maker, written, failed)
                bar.update(len(batch))
                if batch.stop not in missing:
                    continue
                try:
                    records = self.records[: batch.stop]
                    lines.add(measured_line(self.model, records, batch.stop, written.growth, failed))
                except NumericsError as error:
                    if max(lines.known) == 0:
                        raise
                    return f"stopped before {batch.stop} facts: {error}"
                if (stopped := lines.broken(batch.stop, self.max_nll_rise)) is not None:
                    return stopped
        return None

    def _add(self, batch: range, maker: Batches, written: Written, failed: dict[str, str]) -> None:
        """Write the edit of a batch on top of those before it."""
        try:
            written.write(maker.edit_of(batch, self._requests(batch)))
        except (InputError, NumericsError) as error:
            if len(batch) > 1 and isinstance(error, InputError):
                raise  # one fact cannot be written; all others would go unwritten with it
            cases = [str(self.records[index].case_id) for index in batch]
            _log.warning("no edit of record %s: %s", ", ".join(cases), visible(str(error)))
            failed |= dict.fromkeys(cases, f"{type(error).__name__}: {error}")
