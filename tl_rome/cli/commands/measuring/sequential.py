"""`tl-rome sequential`: one model edited again and again (the draft's appendix C.2)."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_rome.cli.editor_options import (
    COMPARED,
    CovarianceOption,
    EditorMaker,
    EditorsOption,
    LayerOption,
    TrainedOption,
)
from tl_rome.cli.many_facts import MAX_NLL_RISE, CountsOption, RiseOption, choose_facts, run_editors
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import LimitOption, RecordsOption, ResultsOption, SeedOption

if TYPE_CHECKING:
    from tl_rome.counterfact import Editor, SequentialResult
    from tl_rome.sites import HookedModel


@with_model
def sequential(
    load: ModelLoader,
    editors: EditorsOption = COMPARED,
    layer: LayerOption = None,
    covariance: CovarianceOption = None,
    trained: TrainedOption = None,
    counts: CountsOption = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Facts that mass editors write together, batch after batch.")
    ] = 1,
    max_nll_rise: RiseOption = MAX_NLL_RISE,
    records: RecordsOption = "sample",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    out: ResultsOption = Path("tl-rome-sequential"),
) -> None:
    """Edit one model many times, and score all of its edits at several points."""
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.sequential import COUNTS, sequential_edits

    output.check_folder(out)
    maker = EditorMaker(editors, layer, covariance, tuple(trained or ()), seed=seed)
    chosen, wanted = choose_facts(records, limit, counts, COUNTS if batch == 1 else count(batch, batch))

    def experiment(model: "HookedModel", editor: "Editor", **options: Any) -> "SequentialResult":
        return sequential_edits(
            model, chosen, editor, wanted, batch=batch, max_nll_rise=max_nll_rise, seed=seed, **options
        )

    run_editors("sequential", load, maker, out, experiment)
