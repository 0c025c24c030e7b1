"""zsRE under several editors, each record in the model with its own edit; nothing is written to the model.

Each finished batch is stored immediately, so an interrupted run is continued.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from tl_rome.arguments import Count
from tl_rome.counterfact.evaluation.evaluate import USUAL, named_editors, results_folder
from tl_rome.counterfact.evaluation.guard import WeightGuard
from tl_rome.counterfact.evaluation.run import warn_of_failures
from tl_rome.counterfact.results import UNEDITED
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.editors.identity import describe_editor, resumable
from tl_rome.editors.protocol import Editor
from tl_rome.errors import EditStateError, InputError, StorageError, TLRomeError
from tl_rome.running.borrowed import borrows
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import model_settings
from tl_rome.storage.text import visible
from tl_rome.zsre.records import ZsreRecord
from tl_rome.zsre.results import ZsreResults
from tl_rome.zsre.scores import score_zsre
from tl_rome.zsre.store import ScoredRecord, open_row

_log = logging.getLogger(__name__)


@borrows
def evaluate_zsre(
    model: HookedModel,
    records: Iterable[ZsreRecord],
    editors: Editor | Mapping[str, Editor] | None = None,
    *,
    store: str | Path | None = None,
    batch_size: Count | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> ZsreResults:
    """Score the unedited model and every editor; or continue an earlier run.

    A record that an editor cannot edit is logged, and has its reason in `failures`, which is kept like any score.

    Args:
        model: Unedited; left as found.
        records: Each case_id once.
        editors: One, or several by name; None scores the unedited model alone.
        store: Folder of scores, made if needed; by default nothing is kept on disk.
        batch_size: Records edited and scored together, and lost together if the run dies, 8 by default; bounds memory.
        retry_failed: Whether to try records again whose results in the store are such failures.
        progress: Whether to show a progress bar over records.

    Raises:
        InputError: If there are no records, two with one case_id, or see `evaluate` for editors.
        ModelMismatchError: If the store or an editor belongs to another model, or to this one after an edit.
        StorageError: If the store was made with other records or settings, is damaged, in use, or cannot be written.
        EditStateError: If an editor left the model changed; its weights are put back before.
        NumericsError: If a score of the unedited model is not finite.
    """
    given, named = list(records), named_editors(editors)
    if not given or len({record.case_id for record in given}) < len(given):
        raise InputError(f"{len(given)} records; give at least one, each with a case_id of its own")
    size, rows = batch_size or USUAL, dict[str, list[ScoredRecord]]()
    dataset = digest([asdict(record) for record in sorted(given, key=lambda record: record.case_id)])
    settings = {**model_settings(model), "dataset": dataset, "records": len(given)}
    described = {name: resumable(name, describe_editor(editor)) for name, editor in named.items()}
    scorer = _Scorer(model, named, WeightGuard(model, named.values()))
    total = len(given) * (1 + len(named))
    with results_folder(store) as folder, tqdm(total=total, disable=not progress, unit="record") as bar:
        for name in (UNEDITED, *named):
            bar.set_description(visible(name))
            with open_row(folder, settings, name, described.get(name)) as row:
                left = row.left((record.case_id for record in given), retry_failed)
                bar.update(len(given) - len(left))
                for first in range(0, len(given), size):  # batches of a run that was never interrupted
                    if batch := [record for record in given[first : first + size] if record.case_id in left]:
                        row.add(*scorer.score(batch, name))
                        bar.update(len(batch))
                rows[name] = [row.known[record.case_id] for record in given]
    figures = {
        name: {each.case_id: each.scores for each in row if each.scores is not None} for name, row in rows.items()
    }
    failures = {name: {each.case_id: each.error or "" for each in rows[name] if each.scores is None} for name in named}
    warn_of_failures(sum(map(len, failures.values())), len(given) * len(named))
    return ZsreResults(figures, failures)


@dataclass(frozen=True)
class _Scorer:
    """A model and editors that score batches of records; no file is read or written."""

    model: HookedModel
    editors: Mapping[str, Editor]
    guard: WeightGuard

    def score(self, batch: Sequence[ZsreRecord], name: str) -> list[ScoredRecord]:
        """Records with their scores or failures; where one of several could not be edited, each is tried alone."""
        try:
            found = score_zsre(self.model, batch, edits=self._edits(batch, name))
        except (StorageError, EditStateError):
            raise
        except TLRomeError as error:
            if name == UNEDITED:
                raise
            if len(batch) == 1:
                _log.warning("%s left out record %d: %s", name, batch[0].case_id, error)
                return [ScoredRecord(batch[0].case_id, None, visible(f"{type(error).__name__}: {error}"))]
        else:
            return [ScoredRecord(record.case_id, each) for record, each in zip(batch, found, strict=True)]
        return [each for record in batch for each in self.score([record], name)]

    def _edits(self, batch: Sequence[ZsreRecord], name: str) -> VirtualEdits | None:
        if name == UNEDITED:
            return None
        requests = [record.request for record in batch]
        return VirtualEdits(self.model, self.guard.make_edits(requests, self.editors[name], name))
