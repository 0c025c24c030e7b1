"""Mass editing: many facts written at once, by their number (Meng et al. 2023, arXiv 2210.07229, section 5).

Each number of facts is a batch of its own on the unedited model. Editors of single facts stand beside with the same
facts, one after another.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_rome.arguments import Count, Positive, Seed
from tl_rome.counterfact.experiments.many_facts import MAX_NLL_RISE, ManyFacts, check_counts
from tl_rome.counterfact.experiments.sequential import sequential_edits
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import Conventions
from tl_rome.editors.identity import editor_name
from tl_rome.editors.mass.editor import MassEditor
from tl_rome.editors.protocol import Editor
from tl_rome.editors.rank_one.shared_values import SharedValues
from tl_rome.editors.rank_one.value import optimise_values
from tl_rome.sites import HookedModel

MASS_COUNTS = (1, 3, 10, 32, 100, 316, 1000)
"""Numbers of facts in even steps on a logarithmic scale."""


def mass_edits(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editor: Editor,
    counts: Sequence[Count] = MASS_COUNTS,
    *,
    name: str | None = None,
    store: str | Path | None = None,
    max_nll_rise: Positive | None = MAX_NLL_RISE,
    conventions: Conventions = "released",
    seed: Seed = 0,
    progress: bool = True,
) -> SequentialResult:
    """Write the first n facts in one batch, for each n in `counts`, and score all of them in the model that has them.

    z of a fact is found once for all numbers; editors that hold the same `SharedValues`, as those of `editors_by_name`
    do, share it too.

    Args:
        model: Unedited; its weights are written to, and are back bit for bit afterwards.
        records: Each case_id once; those after the largest count are not used.
        editor: A `MassEditor`; any other editor is given to `sequential_edits`.
        counts: Numbers of facts.
        name: What to call the editor in tables.
        store: Folder that keeps edits and scores, to continue an interrupted run; one for each editor.
        max_nll_rise: See `sequential_edits`; larger numbers are left out.
        conventions: Whose conventions the figures follow.
        seed: Of the bootstrap.
        progress: Whether to show a progress bar over facts.

    Raises:
        InputError: If a count is not from 1 to the number of records, two records have one case_id, or facts repeat or
            contradict each other, or cannot be written.
        TLRomeError: As `sequential_edits` does.
    """
    chosen = tuple(records)
    options: dict[str, Any] = {"conventions": conventions, "seed": seed}
    if not isinstance(editor, MassEditor):
        more: dict[str, Any] = {"name": name, "store": store, "max_nll_rise": max_nll_rise, "progress": progress}
        return sequential_edits(model, chosen, editor, counts, **more, **options)
    check_counts(chosen, counts)
    if editor.find_values is optimise_values:
        editor = replace(editor, find_values=SharedValues())
    run = ManyFacts(
        model,
        chosen[: max(counts)],
        editor,
        name or editor_name(editor),
        batch=None,
        store=None if store is None else Path(store),
        max_nll_rise=max_nll_rise,
        progress=progress,
    )
    return run.result(counts, first=None, **options)
