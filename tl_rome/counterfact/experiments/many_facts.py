"""Facts in one model, scored by their number: what sequential and mass editing have in common.

In a series batch after batch is written into the unedited model, each on top of those before it, and all facts so far
are scored after some of them. Beside the scores stand the NLL of plain sentences and the entropy of their next tokens,
which reveal a broken model, and how much the weights have changed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_rome.counterfact.evaluation.guard import WeightGuard
from tl_rome.counterfact.evaluation.measure import measure
from tl_rome.counterfact.experiments.batches import Batches
from tl_rome.counterfact.experiments.curve import Curve
from tl_rome.counterfact.experiments.restored import Written, restored
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.counterfact.experiments.sweep import SCORES_ONLY
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import CaseResult, Conventions
from tl_rome.editors.edits.outcome import probe_model
from tl_rome.editors.identity import describe_editor, resumable
from tl_rome.editors.mass.editor import MassEditor
from tl_rome.editors.mass.requests import check_batch
from tl_rome.editors.protocol import Editor
from tl_rome.errors import InputError, NumericsError
from tl_rome.facts import EditRequest
from tl_rome.running.borrowed import borrowed
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import Ledger, model_settings, open_ledger
from tl_rome.storage.parts import reading
from tl_rome.storage.text import visible

MAX_NLL_RISE = 3.0
"""Nats per token that plain sentences may become less likely before a model counts as broken: twenty times."""
_FIELDS = {
    "count": int,
    "text_nll": float,
    "text_entropy": float,
    "growth": float,
    "failed": dict[str, str],
    "results": list,
}
"""What a line of the store has."""
_log = logging.getLogger(__name__)


@dataclass
class _Lines:
    """Lines by number of facts, and the ledger that keeps them."""

    known: dict[int, dict[str, Any]] = field(default_factory=dict)
    ledger: Ledger | None = None

    def add(self, line: dict[str, Any]) -> None:
        self.known[line["count"]] = line
        if self.ledger is not None:
            self.ledger.append(line)


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
            InputError: If the facts of a batch repeat or contradict each other.
            TLRomeError: As `sequential_edits` does.
        """
        counts = sorted(set(counts))
        if isinstance(self.editor, MassEditor):
            for batch in self._series(counts)[-1]:
                check_batch(self._requests(batch))
        with borrowed(self.model):
            lines, stopped = self._lines(counts)
        if stopped is not None:
            _log.warning("%s: %s", visible(self.name), stopped)
        nll, entropy, growth = (
            tuple(line[name] for line in lines.values()) for name in ("text_nll", "text_entropy", "growth")
        )
        cases = {count: self._cases(count, line, lines[0]) for count, line in lines.items() if count}

        def curve(most: int | None) -> Curve:
            scored = [case for found in cases.values() for case in found[:most]]
            summary = summarize(scored, conventions=conventions, seed=seed)
            return Curve.of(summary, self.name, "facts", {count: str(count) for count in cases})

        failed = {int(case): reason for case, reason in lines[max(lines)]["failed"].items()}
        alone = None if first is None else curve(first)
        return SequentialResult(curve(None), nll, entropy, growth, failed, alone, stopped)

    def _series(self, counts: Sequence[int]) -> list[list[range]]:
        """Indices of the records of each batch; the last series has the largest number."""
        if self.batch is None:
            return [[range(count)] for count in counts]
        return [[range(start, start + self.batch) for start in range(0, counts[-1], self.batch)]]

    def _requests(self, batch: range) -> list[EditRequest]:
        return [self.records[index].request for index in batch]

    def _lines(self, counts: Sequence[int]) -> tuple[dict[int, dict[str, Any]], str | None]:
        """The lines of the unedited model and of each number that was reached, and why not of all."""
        if self.store is None:
            return self._complete(counts, _Lines())
        settings = {
            **model_settings(self.model),
            "dataset": digest([record.to_dict() for record in self.records]),
            "editor": resumable(self.name, describe_editor(self.editor)),
            "batch": self.batch,
        }
        with open_ledger(self.store / "scores.jsonl", "scores by number of facts", settings, _FIELDS) as ledger:
            return self._complete(counts, _Lines({line["count"]: line for line in ledger.records}, ledger))

    def _complete(self, counts: Sequence[int], lines: _Lines) -> tuple[dict[int, dict[str, Any]], str | None]:
        guard, stopped = WeightGuard(self.model, [self.editor]), None
        if 0 not in lines.known:
            lines.add(self._line(0, Written(self.model), {}))
        for batches in self._series(counts):
            stopped = self._write(batches, [batch.stop for batch in batches if batch.stop in counts], lines, guard)
            if stopped is not None:
                break
        reached = {0: lines.known[0]}
        for count in counts:
            if count not in lines.known or self._broken(max(reached), lines) is not None:
                break
            reached[count] = lines.known[count]
        return reached, stopped

    def _write(self, batches: Sequence[range], counts: Sequence[int], lines: _Lines, guard: WeightGuard) -> str | None:
        """Write a series as far as lines of some numbers are missing, and add these; why it ended early, if it did."""
        missing = [count for count in counts if count not in lines.known]
        known = (self._broken(count, lines) for count in counts if count in lines.known)
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
                    lines.add(self._line(batch.stop, written, failed))
                except NumericsError as error:
                    if max(lines.known) == 0:
                        raise
                    return f"stopped before {batch.stop} facts: {error}"
                if (stopped := self._broken(batch.stop, lines)) is not None:
                    return stopped
        return None

    def _broken(self, count: int, lines: _Lines) -> str | None:
        """Why a model counts as broken, in words."""
        before, after = (lines.known[each]["text_nll"] for each in (0, count))
        if self.max_nll_rise is None or after - before <= self.max_nll_rise:
            return None
        return (
            f"stopped after {count} facts: the NLL of plain sentences has risen from {before:.2f} to {after:.2f} nats, "
            f"by more than {self.max_nll_rise:g}, so the model is broken"
        )

    def _add(self, batch: range, maker: Batches, written: Written, failed: dict[str, str]) -> None:
        """Write the edit of a batch on top of those before it."""
        try:
            written.write(maker.edit_of(batch, self._requests(batch)))
        except (InputError, NumericsError) as error:
            cases = [str(self.records[index].case_id) for index in batch]
            which = f"record {cases[0]}" if len(cases) == 1 else f"{len(cases)} records from {cases[0]} on"
            _log.warning("no edit of %s: %s", which, visible(str(error)))
            failed |= dict.fromkeys(cases, f"{type(error).__name__}: {error}")

    def _line(self, count: int, written: Written, failed: Mapping[str, str]) -> dict[str, Any]:
        """Measure the model as it stands."""
        records = self.records[:count] if count else self.records
        measured = measure(self.model, records, SCORES_ONLY)
        texts = probe_model(self.model, records[0].request)
        found = [
            CaseResult(
                case_id=record.case_id,
                rewrite=record.requested_rewrite,
                editor=str(count),
                config="",
                model="",
                dataset="",
                after=each.measurement,
            )
            for record, each in zip(records, measured, strict=True)
        ]
        figures = {"text_nll": texts.text_nll, "text_entropy": texts.text_entropy, "growth": written.growth}
        return {
            "count": count,
            **figures,
            "failed": dict(failed),
            "results": [result.to_dict() for result in found],
        }

    def _cases(self, count: int, line: Mapping[str, Any], unedited: Mapping[str, Any]) -> list[CaseResult]:
        """Results of one number of facts, with those of the unedited model as `before`."""
        with reading(self.store or "a line", f"the scores of {count} facts"):
            pairs = zip(line["results"], unedited["results"][:count], strict=True)
            return [
                replace(CaseResult.from_dict(after), before=CaseResult.from_dict(before).after)
                for after, before in pairs
            ]
