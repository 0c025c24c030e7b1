"""Sequential edits of one model, with all facts so far scored (the draft's appendix C.2; not in the published paper).

Each edit is made on the model as edited so far, with the key statistics of the unedited model, as in the release.
Beside the scores stand the NLL of plain sentences and the entropy of their next tokens, which reveal a broken model.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count, Seed
from tl_rome.counterfact.evaluation.guard import WeightGuard
from tl_rome.counterfact.evaluation.measure import measure
from tl_rome.counterfact.experiments.curve import Curve
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.counterfact.experiments.sweep import SCORES_ONLY
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import CaseResult, Conventions
from tl_rome.editors.edits.outcome import probe_model
from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.identity import describe_editor, editor_name, resumable
from tl_rome.editors.protocol import Editor
from tl_rome.editors.rank_one.editor import Rome
from tl_rome.editors.rank_one.value import optimise_values
from tl_rome.errors import InputError, NumericsError
from tl_rome.running.borrowed import borrowed
from tl_rome.running.interrupts import reliable
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import Ledger, model_settings, open_ledger
from tl_rome.storage.parts import reading
from tl_rome.storage.text import visible

COUNTS = (1, *range(10, 101, 10))
"""Numbers of facts after which the draft scores the model (its appendix C.2)."""
_FIELDS = {"count": int, "text_nll": float, "text_entropy": float, "failed": dict[str, str], "results": list}
"""What a line of the store has."""
_log = logging.getLogger(__name__)


def sequential_edits(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editor: Editor,
    counts: Sequence[Count] = COUNTS,
    *,
    name: str | None = None,
    store: str | Path | None = None,
    conventions: Conventions = "released",
    seed: Seed = 0,
    progress: bool = True,
) -> SequentialResult:
    """Edit facts one after another into one model, and score all of them so far after each number in `counts`.

    Args:
        model: Unedited; its weights are written to, and are back bit for bit afterwards.
        records: In the order of the edits, each case_id once; those after the largest count are not used.
        editor: Such as `Rome.prepare(model)`; `SharedValues` are not used, since they are of the unedited model.
        counts: Numbers of facts.
        name: What to call the editor in tables.
        store: Folder that keeps edits and scores, to continue an interrupted run; one for each editor.
        conventions: Whose conventions the figures follow.
        seed: Of the bootstrap.
        progress: Whether to show a progress bar over edits.

    Raises:
        InputError: If a count is not from 1 to the number of records, or two records have one case_id.
        NumericsError: If the edited model's scores are not finite.
        UnsupportedModelError: See `borrowed`.
        EditStateError: If the editor left the model changed; its weights are put back before.
        ModelMismatchError: If the store or the editor belongs to another model.
        StorageError: If the store was made with other records or settings, or cannot be written.
    """
    chosen = tuple(records)
    _check(chosen, counts)
    chosen, name = chosen[: max(counts)], name or editor_name(editor)
    if isinstance(editor, Rome):
        editor = replace(editor, find_values=optimise_values)
    run = _Run(model, chosen, editor, name, None if store is None else Path(store), progress)
    with borrowed(model):
        lines = run.lines(sorted({0, *counts}))
    cases = [case for count, line in lines.items() if count for case in run.results(count, line, lines[0])]
    curve = Curve.of(
        summarize(cases, conventions=conventions, seed=seed), name, "facts", {n: str(n) for n in lines if n}
    )
    nll, entropy = (tuple(line[figure] for line in lines.values()) for figure in ("text_nll", "text_entropy"))
    last = lines[max(lines)]
    return SequentialResult(curve, nll, entropy, {int(case): reason for case, reason in last["failed"].items()})


@reliable
def restored(model: HookedModel) -> Iterator[Callable[[EditSequence], None]]:
    """Yields a function that writes edits into a model; at the end all weights are restored bit for bit.

    Only the first weights of each edited matrix are kept, however many edits there are.
    """
    kept: dict[MlpMatrix, Tensor] = {}

    def write(edit: EditSequence) -> None:
        for place in {update.place for update in edit.updates} - kept.keys():
            kept[place] = place.weight(model).detach().clone()
        # A copy, which forgets what it replaced: the edit given is not applied once the weights are back.
        EditSequence(tuple(replace(part) for part in edit.edits)).apply(model)

    try:
        yield write
    finally:
        with torch.no_grad():
            for place, weight in kept.items():
                place.weight(model).copy_(weight)


def _check(records: Sequence[CounterFactRecord], counts: Sequence[int]) -> None:
    if not counts or min(counts) < 1 or max(counts) > len(records):
        raise InputError(
            f"counts {', '.join(map(str, counts)) or '(none)'} with {len(records)} records; "
            f"give numbers of facts from 1 to {len(records)}, or more records"
        )
    numbers = {record.case_id for record in records}
    if len(numbers) < len(records):
        raise InputError(f"{len(numbers)} case_ids of {len(records)} records; give each record a case_id of its own")


@dataclass(frozen=True)
class _Run:
    """One editor's run, as lines of a ledger: one for each count, 0 being the unedited model with all facts."""

    model: HookedModel
    records: Sequence[CounterFactRecord]
    editor: Editor
    name: str
    store: Path | None
    progress: bool

    def lines(self, counts: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The line of each count; missing ones are computed."""
        if self.store is None:
            return self._complete(counts, {}, None)
        records = [record.to_dict() for record in self.records]
        settings = {
            **model_settings(self.model),
            "dataset": digest(records),
            "editor": resumable(self.name, describe_editor(self.editor)),
        }
        with open_ledger(self.store / "scores.jsonl", "scores of many facts", settings, _FIELDS) as ledger:
            return self._complete(counts, {line["count"]: line for line in ledger.records}, ledger)

    def _complete(
        self, counts: Sequence[int], lines: dict[int, dict[str, Any]], ledger: Ledger | None
    ) -> dict[int, dict[str, Any]]:
        missing = [count for count in counts if count not in lines]
        failed: dict[str, str] = {}
        total = max(missing, default=0)
        guard = WeightGuard(self.model, [self.editor])
        with (
            restored(self.model) as write,
            tqdm(total=total, desc=visible(self.name), unit="edit", disable=not self.progress) as bar,
        ):
            for count in range(total + 1):
                if count:
                    self._add(count - 1, guard, write, failed)
                    bar.update()
                if count in missing:
                    lines[count] = self._line(count, failed)
                    if ledger is not None:
                        ledger.append(lines[count])
        return {count: lines[count] for count in counts}

    def _add(
        self, index: int, guard: WeightGuard, write: Callable[[EditSequence], None], failed: dict[str, str]
    ) -> None:
        """Write the edit of one record on top of those before it."""
        file = None if self.store is None else self.store / "edits" / f"{index}.safetensors"
        if file is not None and file.exists():
            write(EditSequence.load(file, self.model))
            return
        record = self.records[index]
        try:
            [made] = guard.make_edits([record.request], self.editor, self.name)
            edit = made if isinstance(made, EditSequence) else EditSequence((made,))
            write(edit)
        except (InputError, NumericsError) as error:
            _log.warning("no edit of record %d: %s", record.case_id, visible(str(error)))
            failed[str(record.case_id)] = f"{type(error).__name__}: {error}"
            return
        if file is not None:
            edit.save(file)

    def _line(self, count: int, failed: Mapping[str, str]) -> dict[str, Any]:
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
        figures = {"text_nll": texts.text_nll, "text_entropy": texts.text_entropy, "failed": dict(failed)}
        return {"count": count, **figures, "results": [result.to_dict() for result in found]}

    def results(self, count: int, line: Mapping[str, Any], unedited: Mapping[str, Any]) -> list[CaseResult]:
        """Results of one count, with those of the unedited model as `before`."""
        with reading(self.store or "a line", f"the scores after {count} edits"):
            pairs = zip(line["results"], unedited["results"][:count], strict=True)
            return [
                replace(CaseResult.from_dict(after), before=CaseResult.from_dict(before).after)
                for after, before in pairs
            ]
