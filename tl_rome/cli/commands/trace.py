"""`tl-rome trace`: where a model keeps a fact."""

from pathlib import Path
from typing import Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import SeedOption, SubjectArgument, TemplateArgument


@with_model
def trace(
    load: ModelLoader,
    template: TemplateArgument,
    subject: SubjectArgument,
    target: Annotated[
        str | None, typer.Option(help="Object whose probability is traced.", show_default="the model's own answer")
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to restore: resid_post, mlp_out, attn_out, or any hook point such as attn.hook_z; repeatable.",
            show_default="those three",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Noise samples to average over.")] = 10,
    window: Annotated[
        int | None, typer.Option(help="Layers restored together.", show_default="1 for resid_post, else 10")
    ] = None,
    shared_scale: Annotated[
        bool, typer.Option("--shared-scale", help="One colour scale for all panels, so that a weak effect looks weak.")
    ] = False,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder for heat maps (PNG) and traces (safetensors).")] = Path(
        "tl-rome-trace"
    ),
) -> None:
    """Trace where a model keeps a fact, by restoring states of a corrupted run."""
    import torch

    from tl_rome.cli.output import check_folder, save_figure
    from tl_rome.cli.tables import trace_table
    from tl_rome.facts import Fact
    from tl_rome.patching import GaussianNoise, causal_trace
    from tl_rome.patching.averaging.trace_facts import COMPONENTS

    fact = Fact(template, subject, target)
    check_folder(out)
    model = load()
    options = {"window": window, "corruption": GaussianNoise(samples=samples), "progress": console.shows_progress()}
    traces = {}
    for name in dict.fromkeys(component or COMPONENTS):
        rng = torch.Generator().manual_seed(seed)
        traces[name] = causal_trace(model, fact, name, generator=rng, **options)
    console.out.print(trace_table(traces, fact.prompt, cells=4))
    files = [save_figure([result], out / f"trace_{name}.png") for name, result in traces.items()]
    if len(traces) > 1:
        files.append(save_figure(list(traces.values()), out / "trace.png", shared_scale=shared_scale))
    files += [result.save(out / f"trace_{name}.safetensors") for name, result in traces.items()]
    console.say_written(files)
