"""`tl-rome sequential`: one model edited again and again (the draft's appendix C.2)."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.editor_options import (
    COMPARED,
    CovarianceOption,
    EditorMaker,
    EditorsOption,
    LayerOption,
    TrainedOption,
)
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import Integers, LimitOption, RecordsOption, ResultsOption, SeedOption, integers
from tl_rome.errors import InputError


@with_model
def sequential(
    load: ModelLoader,
    editors: EditorsOption = COMPARED,
    layer: LayerOption = None,
    covariance: CovarianceOption = None,
    trained: TrainedOption = None,
    counts: Annotated[
        Integers | None,
        typer.Option(
            parser=integers,
            metavar="NUMBERS",
            help="Numbers of facts as 1,10,20.",
            show_default="1, 10, 20 ... 100, as far as records go",
        ),
    ] = None,
    records: RecordsOption = "sample",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    out: ResultsOption = Path("tl-rome-sequential"),
) -> None:
    """Edit one model many times, and score all of its edits at several points."""
    from tl_rome import counterfact
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.plot import sequential_figure
    from tl_rome.counterfact.experiments.sequential import COUNTS, sequential_edits

    output.check_folder(out)
    maker = EditorMaker(editors, layer, covariance, tuple(trained or ()), seed=seed)
    chosen = counterfact.load_counterfact(records)[:limit]
    wanted = counts or [count for count in COUNTS if count <= len(chosen)]
    if max(wanted) > len(chosen) or min(wanted) < 1:
        asked = ",".join(map(str, wanted))
        raise InputError(f"--counts {asked} with {len(chosen)} records; give numbers from 1 to {len(chosen)}")
    model = load()
    found = {}
    for name, editor in maker(model).items():
        options: dict[str, Any] = {"store": out / "results" / name, "seed": seed, "progress": console.shows_progress()}
        found[name] = sequential_edits(model, chosen, editor, wanted, name=name, **options)
    grids = [result.grid() for result in found.values()]
    plain = {name: result.to_dict() for name, result in found.items()}
    figure = sequential_figure(found)
    console.say_grids(grids)
    console.say_written(output.save_experiment(out, "sequential", plain, grids, figure))
