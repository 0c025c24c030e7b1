"""The command line: it parses, calls the library, prints tables and writes files.

Torch and the library are imported inside the commands, so that `tl-rome --help` answers at once. Files appear whole or
not at all, when everything is computed, so that Ctrl-C leaves nothing half-written. An error of ours is one line on
stderr and exit code 1; a usage error is typer's, with exit code 2.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from tl_rome.errors import InputError, TLRomeError

if TYPE_CHECKING:
    from tl_rome.sites import HookedModel


class _Commands(TyperGroup):
    """All commands; here an error of ours becomes a message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TLRomeError as error:
            message = Text(f"error: {error}".replace("\n", " "), style="red")
            Console(stderr=True).print(message, soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_out = Console()


class Kind(StrEnum):
    """TransformerLens classes."""

    hooked = "hooked"
    bridge = "bridge"


class Component(StrEnum):
    """What a trace restores."""

    hidden = "hidden"
    mlp = "mlp"
    attn = "attn"
    all = "all"


class Dtype(StrEnum):
    """Floating-point types of weights."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


_Template = Annotated[str, typer.Argument(help="Prompt with one {} in the subject's place, ending before the object.")]
_Subject = Annotated[str, typer.Argument(help="The entity, as it appears in the prompt.")]
_Model = Annotated[str, typer.Option("--model", help="smollm2-135m, a hub name, or a folder in Hugging Face layout.")]
_Kind = Annotated[
    Kind | None, typer.Option("--kind", help="HookedTransformer or TransformerBridge.", show_default="hooked if there")
]
_Dtype = Annotated[Dtype, typer.Option("--dtype", help="Type of the weights.")]
_Device = Annotated[
    str | None, typer.Option("--device", help="Where the model runs: cpu, cuda, mps ...", show_default="cuda or cpu")
]
_Bos = Annotated[
    bool | None,
    typer.Option("--prepend-bos/--no-prepend-bos", help="Begin prompts with BOS.", show_default="the tokenizer's way"),
]
_Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
_Layer = Annotated[int | None, typer.Option("--layer", help="Layer whose MLP is meant.", show_default="by model size")]

_DEFAULT_MODEL = "smollm2-135m"
_SAMPLED_TOKENS = 32_768


def _version(wanted: bool) -> bool:
    if wanted:
        from tl_rome import __version__

        typer.echo(f"tl-rome {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """See where a language model keeps a fact, change it, and see what it says then."""


@app.command()
def trace(
    template: _Template,
    subject: _Subject,
    target: Annotated[
        str | None, typer.Option(help="Object whose probability is traced.", show_default="the model's own answer")
    ] = None,
    component: Annotated[Component, typer.Option(help="What to restore.")] = Component.all,
    samples: Annotated[int, typer.Option(help="Noise samples to average over.")] = 10,
    window: Annotated[
        int | None, typer.Option(help="Layers restored together.", show_default="1 for hidden, else 10")
    ] = None,
    seed: _Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for heat maps (PNG) and traces (safetensors).")] = Path(
        "tl-rome-trace"
    ),
    model: _Model = _DEFAULT_MODEL,
    kind: _Kind = None,
    dtype: _Dtype = Dtype.float32,
    device: _Device = None,
    prepend_bos: _Bos = None,
) -> None:
    """Trace where a model keeps a fact, by restoring states of a corrupted run."""
    import torch

    from tl_rome.demo import COMPONENTS
    from tl_rome.facts import Fact
    from tl_rome.output import check_folder, save_figure
    from tl_rome.patching import GaussianNoise, causal_trace, noise_scale
    from tl_rome.tables import trace_table

    fact = Fact(template, subject, target)
    check_folder(out)
    loaded = _load(model, kind, dtype, device, prepend_bos)
    noise = GaussianNoise(noise_scale(loaded), samples)
    traces = {}
    for name in COMPONENTS if component == Component.all else [component.value]:
        rng = torch.Generator().manual_seed(seed)
        traces[name] = causal_trace(loaded, fact, COMPONENTS[name], generator=rng, window=window, corruption=noise)
    _out.print(trace_table(traces, fact.prompt, cells=4))
    files = [save_figure([result], out / f"trace_{name}.png") for name, result in traces.items()]
    if len(traces) > 1:
        files.append(save_figure(list(traces.values()), out / "trace.png"))
    files += [result.save(out / f"trace_{name}.safetensors") for name, result in traces.items()]
    _show(files)


@app.command()
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
    seed: _Seed = 0,
    model: _Model = _DEFAULT_MODEL,
    kind: _Kind = None,
    dtype: _Dtype = Dtype.float32,
    device: _Device = None,
    prepend_bos: _Bos = None,
) -> None:
    """Average the traces of many facts that a model knows, and suggest the layer to edit."""
    import torch

    from tl_rome import patching
    from tl_rome.output import check_folder, save_averages
    from tl_rome.tables import frame_table

    check_folder(store)
    loaded = _load(model, kind, dtype, device, prepend_bos)
    found = patching.read_facts(facts) if facts is not None else patching.own_facts()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = [found[index] for index in order]
    known = patching.collect_known_facts(loaded, asked, store=store / "known.jsonl", limit=prompts)
    noise = patching.GaussianNoise(float(f"{patching.noise_scale(loaded):.6g}"), samples)
    config = patching.TraceConfig(corruption=noise)
    chosen = [one.fact for one in known]
    traces = patching.trace_facts(loaded, chosen, store=store, seed=seed, config=config, together=together)
    rng = torch.Generator().manual_seed(seed)
    averages = {name: patching.average_traces(results, generator=rng) for name, results in traces.items()}
    _out.print(frame_table(patching.summary_frame(averages.values()).round(3)))
    _out.print(Text(f"to edit: {patching.suggest_layer(averages['mlp_out'], generator=rng)}"), soft_wrap=True)
    files = [result.save(store / f"average_{name}.safetensors") for name, result in averages.items()]
    _show([save_averages(list(averages.values()), store / "average.png"), *files])


@app.command()
def edit(
    template: _Template,
    subject: _Subject,
    target_new: Annotated[str, typer.Argument(help="What the model should say.")],
    target_true: Annotated[str | None, typer.Option(help="What it says now; only reported.")] = None,
    layer: _Layer = None,
    covariance: Annotated[
        Path | None,
        typer.Option(help="File of `tl-rome covariance`.", show_default="shipped, else sampled"),
    ] = None,
    ask: Annotated[list[str] | None, typer.Option(help="A prompt to try before and after; repeatable.")] = None,
    seed: _Seed = 0,
    out: Annotated[Path, typer.Option(help="File for the edit; replaced if it exists.")] = Path("edit.safetensors"),
    model: _Model = _DEFAULT_MODEL,
    kind: _Kind = None,
    dtype: _Dtype = Dtype.float32,
    device: _Device = None,
    prepend_bos: _Bos = None,
) -> None:
    """Rewrite one fact with ROME, save the edit, and show what the model says before and after."""
    from tl_rome import demo, editors, output, tables
    from tl_rome.facts import EditRequest

    request = EditRequest(template, subject, target_new, target_true)
    output.check_file(out)
    statistics = editors.KeyCovariance.load(covariance) if covariance is not None else None
    loaded = _load(model, kind, dtype, device, prepend_bos)
    targets = [target for target in (target_true, target_new) if target is not None]
    prompts = [request.fact.prompt, *(ask or [])]
    before = demo.ask(loaded, prompts, targets)
    editor = editors.Rome.prepare(loaded, layer=layer, covariance=statistics, seed=seed)
    made = editor(loaded, request, progress=True)
    with made.applied(loaded):
        after = demo.ask(loaded, prompts, targets)
    _out.print(tables.receipt_table(made.receipt))
    _out.print(tables.answer_table(targets, zip(prompts, before, after, strict=True)))
    _show([made.save(out)])


@app.command()
def covariance(
    out: Annotated[Path, typer.Option(help="File to write.")],
    layer: _Layer = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="UTF-8 text file, one text a line; repeatable.",
            show_default="own samples",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after about this many.", show_default="all text, or 32768 sampled")
    ] = None,
    seed: _Seed = 0,
    model: _Model = _DEFAULT_MODEL,
    kind: _Kind = None,
    dtype: _Dtype = Dtype.float32,
    device: _Device = None,
    prepend_bos: _Bos = None,
) -> None:
    """Estimate the key statistics that an edit needs, once, from text files or from text the model samples itself."""
    import torch

    from tl_rome.editors import KeyCovariance, default_layer
    from tl_rome.output import check_file

    check_file(out)
    loaded = _load(model, kind, dtype, device, prepend_bos)
    layer = default_layer(loaded.cfg.n_layers, loaded.cfg.d_model) if layer is None else layer
    if text:
        source = ", ".join(file.name for file in text)
        found = KeyCovariance.estimate(loaded, layer, _lines(text), source=source, max_tokens=tokens)
    else:
        rng = torch.Generator().manual_seed(seed)
        found = KeyCovariance.from_own_samples(loaded, layer, generator=rng, tokens=tokens or _SAMPLED_TOKENS)
    _out.print(Text(f"layer {layer}: {found.count} tokens from {found.source}, digest {found.digest}"), soft_wrap=True)
    _show([found.save(out)])


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for figures, edit and table.")] = Path("tl-rome-demo"),
    model: _Model = _DEFAULT_MODEL,
    kind: _Kind = None,
) -> None:
    """Find where the model keeps the Eiffel Tower's city, make it Rome, and ask around; takes about two minutes."""
    from tl_rome import tables
    from tl_rome.demo import FACT, run_demo
    from tl_rome.output import check_folder

    check_folder(out)
    result = run_demo(_load(model, kind), out)
    _out.print(tables.trace_table(result.traces, FACT.prompt, cells=2))
    _out.print(tables.receipt_table(result.edit.receipt))
    _out.print(tables.demo_table(result))
    for when, text in zip(("before", "after"), result.continuation, strict=True):
        _out.print(Text(f"{when}: {text}"))
    _out.print(result.summary, style="bold", highlight=False)
    _show(result.files)


def _load(
    name: str,
    kind: Kind | None,
    dtype: Dtype = Dtype.float32,
    device: str | None = None,
    prepend_bos: bool | None = None,
) -> "HookedModel":
    import torch

    from tl_rome.models import load_model

    chosen = cast("Literal['hooked', 'bridge'] | None", kind and kind.value)
    return load_model(name, kind=chosen, dtype=getattr(torch, dtype.value), device=device, prepend_bos=prepend_bos)


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                yield from lines
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {file}: {error}; give a text file in UTF-8") from error


def _show(files: Iterable[Path]) -> None:
    for file in files:
        _out.print(Text(f"wrote {file}"), soft_wrap=True)


def main() -> None:
    """Run the command line; the entry point of `tl-rome`."""
    app(prog_name="tl-rome")


if __name__ == "__main__":
    main()
