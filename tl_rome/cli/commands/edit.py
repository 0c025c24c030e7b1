"""`tl-rome edit`: one fact rewritten, by any preset."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors import FineTune, KeyCovariance, Rome
    from tl_rome.sites import HookedModel


class Preset(StrEnum):
    """Presets of ROME, and of fine-tuning."""

    draft = "draft"
    neurips = "neurips"
    released = "released"
    r_rome = "r_rome"
    p_rome = "p_rome"
    ft = "ft"
    ft_l = "ft_l"

    @property
    def is_fine_tuning(self) -> bool:
        """Whether it needs neither key statistics nor contexts."""
        return self in (Preset.ft, Preset.ft_l)


class Contexts(StrEnum):
    """How the texts before the prompt are made."""

    auto = "auto"
    recipe = "recipe"


def edit(
    template: TemplateArgument,
    subject: SubjectArgument,
    target_new: Annotated[str, typer.Argument(help="What the model should say.")],
    target_true: Annotated[str | None, typer.Option(help="What it says now; only reported.")] = None,
    preset: Annotated[Preset, typer.Option(help="Whose settings to follow; ft and ft_l fine-tune.")] = Preset.released,
    layer: Annotated[
        int | None,
        typer.Option(help="Layer whose MLP is edited.", show_default="that of the statistics, else by model size"),
    ] = None,
    covariance: Annotated[
        str | None,
        typer.Option(help="File of `tl-rome covariance`, or hf://owner/name/file.", show_default="shipped, or sampled"),
    ] = None,
    contexts: Annotated[
        Contexts, typer.Option(help="The preset's recipe; auto: a better one where the model's samples are junk.")
    ] = Contexts.auto,
    ask: Annotated[list[str] | None, typer.Option(help="A prompt to try before and after; repeatable.")] = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="File for the edit; replaced if it exists.")] = Path("edit.safetensors"),
    model: ModelOption = DEFAULT_MODEL,
    kind: KindOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
) -> None:
    """Rewrite one fact, save the edit, and show what the model says before and after."""
    from tl_rome import editors
    from tl_rome.cli import demo_run as demo
    from tl_rome.cli import output, tables
    from tl_rome.facts import EditRequest

    request = EditRequest(template, subject, target_new, target_true)
    output.check_file(out)
    if preset.is_fine_tuning and (covariance is not None or contexts != Contexts.auto):
        raise InputError(
            f"preset {preset.value!r} fine-tunes on the prompt alone; leave out --covariance and --contexts"
        )
    statistics = editors.KeyCovariance.load(covariance) if covariance is not None else None
    loaded = load(model, kind, dtype, device, prepend_bos)
    targets = [target for target in (target_true, target_new) if target is not None]
    prompts = [request.fact.prompt, *(ask or [])]
    before = demo.ask(loaded, prompts, targets)
    made = _editor(loaded, preset, layer, statistics, contexts, seed)(loaded, request, progress=True)
    with made.applied(loaded):
        after = demo.ask(loaded, prompts, targets)
    console.out.print(tables.receipt_table(made.receipt))
    console.out.print(tables.answer_table(targets, zip(prompts, before, after, strict=True)))
    console.say_written([made.save(out)])


def _editor(
    model: "HookedModel",
    preset: Preset,
    layer: int | None,
    covariance: "KeyCovariance | None",
    contexts: Contexts,
    seed: int,
) -> "Rome | FineTune":
    """The editor that the options describe."""
    from tl_rome import editors

    if preset.is_fine_tuning:
        config = editors.FT if preset == Preset.ft else editors.FT_L
        return editors.FineTune.prepare(model, config=config, layer=layer)
    return editors.Rome.prepare(
        model,
        layer=layer,
        covariance=covariance,
        contexts="recipe" if contexts == Contexts.recipe else None,
        config=editors.PRESETS[preset.value],
        seed=seed,
    )
