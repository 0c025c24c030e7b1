"""`tl-rome localization`: does the trace of a fact say which layer to edit? (Hase et al. 2023)."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.commands.measuring.sweep import check_statistics, rome_by_layer, statistics_by_layer
from tl_rome.cli.editor_options import EditorName
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import (
    BatchSizeOption,
    Integers,
    RecordsOption,
    ResultsOption,
    RetryOption,
    SeedOption,
    integers,
)
from tl_rome.errors import InputError


@with_model
def localization(
    load: ModelLoader,
    editor: Annotated[EditorName, typer.Option(help="A preset of rome, ft or ft_l.")] = EditorName.rome,
    layers: Annotated[
        Integers | None,
        typer.Option(
            parser=integers,
            metavar="NUMBERS",
            help="Layers as 0,5,10.",
            show_default="all with statistics, for ROME; else all",
        ),
    ] = None,
    covariances: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of `tl-rome covariance --layers`, for ROME."),
    ] = None,
    records: RecordsOption = "sample",
    facts: Annotated[
        int, typer.Option(min=4, help="Facts at most, of those records whose object the model says.")
    ] = 50,
    every_fact: Annotated[
        bool, typer.Option("--every-fact", help="Take facts that the model does not know too.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples to average each trace over.")] = 10,
    held_out: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Share of the facts that the layer is chosen on.")
    ] = 0.5,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = 0,
    retry_failed: RetryOption = False,
    out: ResultsOption = Path("tl-rome-localization"),
) -> None:
    """Trace facts and edit them at each layer, and see whether the trace says where to edit."""
    from tl_rome import counterfact, patching
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.localization.plot import localization_figure
    from tl_rome.editors import FT, FT_L

    output.check_folder(out)
    chosen, statistics = counterfact.load_counterfact(records), statistics_by_layer(covariances)
    if editor.is_rome:
        check_statistics(editor, layers, statistics)
    elif editor not in (EditorName.ft, EditorName.ft_l):
        raise InputError(f"{editor} chooses its layers itself; give ft, ft_l or a preset of rome")
    model, progress = load(), console.shows_progress()
    if editor.is_rome:
        editors = rome_by_layer(model, editor, layers, statistics, seed)
    else:
        preset = FT if editor == EditorName.ft else FT_L
        editors = {**counterfact.finetune_over_layers(layers or range(model.cfg.n_layers), preset)}
    if every_fact:
        chosen = chosen[:facts]
    else:
        store = out / "known.jsonl"
        chosen = counterfact.known_records(model, chosen, store=store, limit=facts, progress=progress)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "retry_failed": retry_failed}
    options |= {"store": out, "held_out": held_out, "progress": progress}
    config = patching.TraceConfig(corruption=patching.GaussianNoise(samples=samples))
    report = counterfact.localization_report(model, chosen, editors, config=config, **options)
    grids = report.grids(["overall"])
    console.say_grids(grids)
    console.say(f"to edit: {report}")
    files = output.save_experiment(out, "localization", report.to_dict(), report.grids(), localization_figure(report))
    console.say_written([*files, report.save(out / "localization.safetensors")])
