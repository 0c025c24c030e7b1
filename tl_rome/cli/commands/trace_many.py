"""`tl-rome trace-many`: where a model keeps facts, on average."""

from pathlib import Path
from typing import Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import BatchSizeOption, ResultsOption, SeedOption
from tl_rome.errors import InputError


@with_model
def trace_many(
    load: ModelLoader,
    facts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Facts to look through: JSONL, known_facts.json, or a ParaRel folder.",
            show_default="the package's own",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Facts to trace, of those that the model knows.")] = 60,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples to average over.")] = 10,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = 0,
    out: ResultsOption = Path("tl-rome-trace-many"),
) -> None:
    """Average the traces of many facts that a model knows, and suggest the layer to edit."""
    import torch

    from tl_rome import patching
    from tl_rome.cli.output import check_folder, save_averages
    from tl_rome.cli.tables import frame_grid

    check_folder(out)
    found = patching.load_facts(facts) if facts is not None else patching.load_sample_facts()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = [found[index] for index in order]
    model, progress = load(), console.shows_progress()
    known = patching.collect_known_facts(model, asked, store=out / "known.jsonl", limit=prompts, progress=progress)
    config = patching.TraceConfig(corruption=patching.GaussianNoise(samples=samples))
    chosen = [one.fact for one in known]
    if not chosen:
        raise InputError(f"the model knows none of the {len(asked)} facts that it was asked; name others with --facts")
    options = {"config": config, "batch_size": batch_size, "seed": seed, "progress": progress}
    traces = patching.trace_facts(model, chosen, store=out, **options)
    averages = {name: patching.average_traces(results, seed=seed) for name, results in traces.items()}
    frame = patching.summary_frame(averages.values())
    console.say_grids([frame_grid(frame, f"Scores and indirect effects, averaged over {len(chosen)} prompts.")])
    console.say(f"to edit: {patching.suggest_layer(averages['mlp_out'], seed=seed)}")
    files = [result.save(out / f"average_{name}.safetensors") for name, result in averages.items()]
    console.say_written([save_averages(list(averages.values()), out / "average.png"), *files])
