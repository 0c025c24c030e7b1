"""`tl-rome mass`: many facts at once in one model, by their number (MEMIT, arXiv 2210.07229, section 5)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_rome.cli.editor_options import (
    CovarianceOption,
    EditorMaker,
    EditorName,
    EditorNames,
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

_MASS = EditorNames(
    (EditorName.memit, EditorName.emmet, EditorName.alphaedit, EditorName.pmet, EditorName.rome, EditorName.ft)
)


@with_model
def mass(
    load: ModelLoader,
    editors: EditorsOption = _MASS,
    layer: LayerOption = None,
    covariance: CovarianceOption = None,
    trained: TrainedOption = None,
    counts: CountsOption = None,
    max_nll_rise: RiseOption = MAX_NLL_RISE,
    records: RecordsOption = "sample",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    out: ResultsOption = Path("tl-rome-mass"),
) -> None:
    """Write many facts into one model at once, and score all of them, by their number."""
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.mass import MASS_COUNTS, mass_edits

    output.check_folder(out)
    maker = EditorMaker(editors, layer, covariance, tuple(trained or ()), seed=seed)
    chosen, wanted = choose_facts(records, limit, counts, MASS_COUNTS)

    def experiment(model: "HookedModel", editor: "Editor", **options: Any) -> "SequentialResult":
        return mass_edits(model, chosen, editor, wanted, max_nll_rise=max_nll_rise, seed=seed, **options)

    run_editors("mass", load, maker, out, experiment, logarithmic=True)
