"""What `tl-rome sequential` and `tl-rome mass` share: editors one after the other, a table of each, one figure."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_rome.cli import console, output
from tl_rome.cli.editor_options import EditorMaker
from tl_rome.cli.model_options import ModelLoader
from tl_rome.cli.options import Integers, integers
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.counterfact import SequentialResult

CountsOption = Annotated[
    Integers | None,
    typer.Option(
        "--counts",
        parser=integers,
        metavar="NUMBERS",
        help="Numbers of facts as 1,10,20.",
        show_default="as far as records go",
    ),
]
RiseOption = Annotated[
    float, typer.Option("--max-nll-rise", help="Stop where plain sentences are less likely by this many nats a token.")
]


def score_many_facts(
    name: str,
    load: ModelLoader,
    maker: EditorMaker,
    counts: Integers | None,
    usual: Sequence[int],
    records: str,
    limit: int | None,
    out: Path,
    experiment: "Callable[..., SequentialResult]",
    *,
    logarithmic: bool = False,
) -> None:
    """Run an experiment with every editor; say its tables, and write them.

    Args:
        name: Of the files.
        load: Loads the model.
        maker: Makes the editors.
        counts: Numbers of facts that were asked for.
        usual: Those that are taken otherwise, as far as there are records.
        records: As `--records` has it.
        limit: How many of them are taken.
        out: Folder; each editor has a store in it.
        experiment: `sequential_edits` or `mass_edits`.
        logarithmic: See `sequential_figure`.

    Raises:
        InputError: If there are fewer records than the numbers ask for.
    """
    from tl_rome import counterfact
    from tl_rome.counterfact.experiments.plot import sequential_figure

    chosen = counterfact.load_counterfact(records)[:limit]
    wanted = counts or Integers(count for count in usual if count <= len(chosen))
    if not wanted or max(wanted) > len(chosen) or min(wanted) < 1:
        asked = ",".join(map(str, wanted or usual[:1]))
        raise InputError(f"--counts {asked} with {len(chosen)} records; give numbers from 1 to {len(chosen)}")
    model = load()
    found, progress = {}, console.shows_progress()
    for editor_name, editor in maker(model).items():
        store = out / "results" / editor_name
        found[editor_name] = experiment(model, chosen, editor, wanted, name=editor_name, store=store, progress=progress)
    grids = [result.grid() for result in found.values()]
    plain = {editor_name: result.to_dict() for editor_name, result in found.items()}
    figure = sequential_figure(found, logarithmic=logarithmic)
    console.say_grids(grids)
    console.say_written(output.save_experiment(out, name, plain, grids, figure))
