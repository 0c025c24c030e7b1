"""zsRE under several editors, each record in the model with its own edit; nothing is written to the model."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tqdm.auto import tqdm

from tl_rome.arguments import Count
from tl_rome.counterfact.evaluation.evaluate import USUAL, named_editors
from tl_rome.counterfact.evaluation.guard import WeightGuard
from tl_rome.counterfact.results import UNEDITED
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.editors.protocol import Editor
from tl_rome.errors import EditStateError, InputError, StorageError, TLRomeError
from tl_rome.running.borrowed import borrows
from tl_rome.sites import HookedModel
from tl_rome.storage.text import visible
from tl_rome.zsre.records import ZsreRecord
from tl_rome.zsre.results import ZsreResults
from tl_rome.zsre.scores import ZsreScores, score_zsre

_log = logging.getLogger(__name__)


@borrows
def evaluate_zsre(
    model: HookedModel,
    records: Iterable[ZsreRecord],
    editors: Editor | Mapping[str, Editor] | None = None,
    *,
    batch_size: Count | None = None,
    progress: bool = True,
) -> ZsreResults:
    """Score the unedited model and every editor; results are kept in memory alone.

    A record that an editor cannot edit is logged, and has its reason in `failures`.

    Args:
        model: Unedited; left as found.
        records: Each case_id once.
        editors: One, or several by name; None scores the unedited model alone.
        batch_size: Records edited and scored together, 8 by default; bounds memory.
        progress: Whether to show a progress bar over records.

    Raises:
        InputError: If there are no records, two with one case_id, or see `evaluate` for editors.
        ModelMismatchError: If an editor belongs to another model.
        EditStateError: If an editor left the model changed; its weights are put back before.
        NumericsError: If a score of the unedited model is not finite.
    """
    given, named = list(records), named_editors(editors)
    if not given or len({record.case_id for record in given}) < len(given):
        raise InputError(f"{len(given)} records; give at least one, each with a case_id of its own")
    guard, failures = WeightGuard(model, named.values()), {name: dict[int, str]() for name in named}
    figures: dict[str, dict[int, ZsreScores]] = {UNEDITED: {}, **{name: {} for name in named}}

    def edited(batch: Sequence[ZsreRecord], name: str) -> Iterator[tuple[ZsreRecord, ZsreScores]]:
        """Scores of the records that could be edited; where one of several could not, each is tried alone."""
        try:
            edits = guard.make_edits([record.request for record in batch], named[name], name)
            found = score_zsre(model, batch, edits=VirtualEdits(model, edits))
        except (StorageError, EditStateError):
            raise
        except TLRomeError as error:
            if len(batch) == 1:
                failures[name][batch[0].case_id] = visible(f"{type(error).__name__}: {error}")
                _log.warning("%s left out record %d: %s", name, batch[0].case_id, error)
                return
        else:
            yield from zip(batch, found, strict=True)
            return
        for record in batch:
            yield from edited([record], name)

    with tqdm(total=len(given) * len(figures), disable=not progress, unit="record") as bar:
        for name in figures:
            bar.set_description(visible(name))
            size = batch_size or USUAL
            for first in range(0, len(given), size):
                batch = given[first : first + size]
                both = zip(batch, score_zsre(model, batch), strict=True) if name == UNEDITED else edited(batch, name)
                figures[name].update((record.case_id, scores) for record, scores in both)
                bar.update(len(batch))
    return ZsreResults(figures, failures)
