"""Sequential edits of one model, with all facts so far scored (the draft's appendix C.2; not in the published paper).

Each edit is made on the model as edited so far, with the key statistics of the unedited model, as in the release; mass
editors write batch after batch, with z found anew, and with a key memory where their preset has one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tl_rome.arguments import Count, Positive, Seed
from tl_rome.counterfact.experiments.many_facts import MAX_NLL_RISE, ManyFacts, check_counts
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import Conventions
from tl_rome.editors.identity import editor_name
from tl_rome.editors.mass.editor import MassEditor
from tl_rome.editors.protocol import Editor
from tl_rome.editors.rank_one.editor import Rome
from tl_rome.editors.rank_one.value import optimise_values
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel

COUNTS = (1, *range(10, 101, 10))
"""Numbers of facts after which the draft scores the model (its appendix C.2)."""


def sequential_edits(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editor: Editor,
    counts: Sequence[Count] = COUNTS,
    *,
    batch: Count = 1,
    name: str | None = None,
    store: str | Path | None = None,
    max_nll_rise: Positive | None = MAX_NLL_RISE,
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
        batch: Facts that a mass editor writes together; other editors write one after another all the same. Where it
            is above 1, the facts of the first batch are scored by themselves too.
        name: What to call the editor in tables.
        store: Folder that keeps edits and scores, to continue an interrupted run; one for each editor.
        max_nll_rise: Nats per token that plain sentences may become less likely. The first number of facts with which
            they do is the last one, with a logged warning; None goes on.
        conventions: Whose conventions the figures follow.
        seed: Of the bootstrap.
        progress: Whether to show a progress bar over facts.

    Raises:
        InputError: If a count is not from 1 to the number of records or no multiple of `batch`, two records have one
            case_id, or facts of a mass editor's batch repeat or contradict each other, or cannot be written.
        NumericsError: If the edited model's scores are not finite for the first number of facts.
        UnsupportedModelError: See `borrowed`.
        EditStateError: If the editor left the model changed; its weights are put back before.
        ModelMismatchError: If the store or the editor belongs to another model.
        StorageError: If the store was made with other records or settings, or cannot be written.
    """
    chosen = tuple(records)
    check_counts(chosen, counts)
    if odd := [count for count in counts if count % batch]:
        raise InputError(f"counts {', '.join(map(str, odd))} are no multiples of batch {batch}; give such that are")
    mass = isinstance(editor, MassEditor)
    if mass or isinstance(editor, Rome):
        editor = replace(editor, find_values=optimise_values)
    run = ManyFacts(
        model,
        chosen[: max(counts)],
        editor,
        name or editor_name(editor),
        batch=batch if mass else 1,
        store=None if store is None else Path(store),
        max_nll_rise=max_nll_rise,
        progress=progress,
    )
    return run.result(counts, first=batch if batch > 1 else None, conventions=conventions, seed=seed)
