"""What `tl-rome sequential` and `tl-rome mass` share: which facts, and every editor's table in one figure."""

from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.editor_options import EditorMaker
from tl_rome.cli.model_options import ModelLoader
from tl_rome.cli.options import Integers, integers
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.counterfact import CounterFactRecord, SequentialResult

Experiment = Callable[..., "SequentialResult"]
"""Called with a model and an editor, and with `name`, `store` and `progress`."""
MAX_NLL_RISE = 3.0
"""That of the experiments, which import torch, as `--help` must not; a test keeps the two equal."""
CountsOption = Annotated[
    Integers | None,
    typer.Option(
        "--counts",
        parser=integers,
        metavar="NUMBERS",
        help="Numbers of facts as 1,10,20.",
        show_default="rising as far as records go",
    ),
]
RiseOption = Annotated[
    float, typer.Option(help="Stop once plain sentences are less likely by this many nats per token.")
]


def choose_facts(
    records: str, limit: int | None, counts: Integers | None, usual: Iterable[int]
) -> "tuple[list[CounterFactRecord], Integers]":
    """Records, and the numbers of them that are written.

    Args:
        records: As `--records` has it.
        limit: How many of them are taken.
        counts: The numbers that were asked for.
        usual: Rising; those that are taken otherwise, as far as records go.

    Raises:
        InputError: If there are fewer records than that.
    """
    from tl_rome import counterfact

    chosen = counterfact.load_counterfact(records)[:limit]
    wanted = counts or Integers(takewhile(lambda count: count <= len(chosen), usual))
    if not wanted or max(wanted) > len(chosen) or min(wanted) < 1:
        asked = f"--counts {','.join(map(str, wanted))}" if wanted else "--batch"
        raise InputError(f"{asked} with {len(chosen)} records; give numbers from 1 to {len(chosen)}")
    return chosen, wanted


def run_editors(
    name: str, load: ModelLoader, maker: EditorMaker, out: Path, experiment: Experiment, *, logarithmic: bool = False
) -> None:
    """Run an experiment with every editor; say its tables, and write them.

    Args:
        name: Of the files.
        load: Loads the model.
        maker: Makes the editors.
        out: Folder; each editor has a store in it.
        experiment: What to run.
        logarithmic: See `plot_sequential`.
    """
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.plot import sequential_figure

    model, found = load(), {}
    for editor_name, editor in maker(model).items():
        options = {"store": out / "results" / editor_name, "progress": console.shows_progress()}
        found[editor_name] = experiment(model, editor, name=editor_name, **options)
    grids = [result.grid() for result in found.values()]
    plain = {editor_name: result.to_dict() for editor_name, result in found.items()}
    figure = sequential_figure(found, logarithmic=logarithmic)
    console.say_grids(grids)
    console.say_written(output.save_experiment(out, name, plain, grids, figure))
