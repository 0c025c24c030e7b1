"""`tl-rome trace` and `tl-rome average`: where a fact is kept, and where facts are."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.options import (
    DEFAULT_MODEL,
    BosOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    KindOption,
    ModelOption,
    SeedOption,
    SubjectArgument,
    TemplateArgument,
    load,
)


class Component(StrEnum):
    """What a trace restores."""

    hidden = "hidden"
    mlp = "mlp"
    attn = "attn"
    all = "all"


def trace(
    template: TemplateArgument,
    subject: SubjectArgument,
    target: Annotated[
        str | None, typer.Option(help="Object whose probability is traced.", show_default="the model's own answer")
    ] = None,
    component: Annotated[Component, typer.Option(help="What to restore.")] = Component.all,
    samples: Annotated[int, typer.Option(help="Noise samples to average over.")] = 10,
    window: Annotated[
        int | None, typer.Option(help="Layers restored together.", show_default="1 for hidden, else 10")
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder for heat maps (PNG) and traces (safetensors).")] = Path(
        "tl-rome-trace"
    ),
    model: ModelOption = DEFAULT_MODEL,
    kind: KindOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
) -> None:
    """Trace where a model keeps a fact, by restoring states of a corrupted run."""
    import torch

    from tl_rome.cli.demo_run import COMPONENTS
    from tl_rome.cli.output import check_folder, save_figure
    from tl_rome.cli.tables import trace_table
    from tl_rome.facts import Fact
    from tl_rome.patching import GaussianNoise, causal_trace

    fact = Fact(template, subject, target)
    check_folder(out)
    loaded = load(model, kind, dtype, device, prepend_bos)
    noise = GaussianNoise(samples=samples)
    traces = {}
    for name in COMPONENTS if component == Component.all else [component.value]:
        rng = torch.Generator().manual_seed(seed)
        traces[name] = causal_trace(loaded, fact, COMPONENTS[name], generator=rng, window=window, corruption=noise)
    console.out.print(trace_table(traces, fact.prompt, cells=4))
    files = [save_figure([result], out / f"trace_{name}.png") for name, result in traces.items()]
    if len(traces) > 1:
        files.append(save_figure(list(traces.values()), out / "trace.png"))
    files += [result.save(out / f"trace_{name}.safetensors") for name, result in traces.items()]
    console.say_written(files)


def average(
    store: Annotated[Path, typer.Option(help="Folder of results; a run that was interrupted goes on there.")],
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
    together: Annotated[int, typer.Option(min=1, help="Prompts to run at once, for large devices.")] = 1,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    kind: KindOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
) -> None:
    """Average the traces of many facts that a model knows, and suggest the layer to edit."""
    import torch

    from tl_rome import patching
    from tl_rome.cli.output import check_folder, save_averages
    from tl_rome.cli.tables import frame_table

    check_folder(store)
    loaded = load(model, kind, dtype, device, prepend_bos)
    found = patching.read_facts(facts) if facts is not None else patching.own_facts()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = [found[index] for index in order]
    known = patching.collect_known_facts(loaded, asked, store=store / "known.jsonl", limit=prompts)
    config = patching.TraceConfig(corruption=patching.GaussianNoise(samples=samples))
    chosen = [one.fact for one in known]
    traces = patching.trace_facts(loaded, chosen, store=store, seed=seed, config=config, batch_size=together)
    averages = {name: patching.average_traces(results, seed=seed) for name, results in traces.items()}
    console.out.print(frame_table(patching.summary_frame(averages.values()).round(3)))
    console.say(f"to edit: {patching.suggest_layer(averages['mlp_out'], seed=seed)}")
    files = [result.save(store / f"average_{name}.safetensors") for name, result in averages.items()]
    console.say_written([save_averages(list(averages.values()), store / "average.png"), *files])
