"""`tl-rome edit`: one fact rewritten, by any editor."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.editor_options import CovarianceOption, EditorName, LayerOption, layer_choice
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import SeedOption, SubjectArgument, TemplateArgument
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors import FineTune, KeyCovariance, Rome
    from tl_rome.editors.layers import LayerFinder
    from tl_rome.sites import HookedModel


NOT_TAKEN = "did not take"
"""The receipt's verdict on an edit without effect."""
NOT_TAKEN_CODE = 3
"""The exit code then."""


class Contexts(StrEnum):
    """How the texts before the prompt are made."""

    auto = "auto"
    recipe = "recipe"


@with_model
def edit(
    load: ModelLoader,
    template: TemplateArgument,
    subject: SubjectArgument,
    target_new: Annotated[str, typer.Argument(help="What the model should say.")],
    target_true: Annotated[str | None, typer.Option(help="What it says now; only reported.")] = None,
    editor: Annotated[EditorName, typer.Option(help="Whose settings to follow; ft and ft_l fine-tune.")] = (
        EditorName.rome
    ),
    layer: LayerOption = None,
    covariance: CovarianceOption = None,
    contexts: Annotated[
        Contexts, typer.Option(help="The editor's recipe; auto: a better one where the model's samples are junk.")
    ] = Contexts.auto,
    ask: Annotated[list[str] | None, typer.Option(help="A prompt to try before and after; repeatable.")] = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="File for the edit; replaced if it exists.")] = Path("edit.safetensors"),
) -> None:
    """Rewrite one fact, save the edit, and show what the model says before and after.

    An edit that did not take is saved too, and the exit code is 3.
    """
    from tl_rome import editors
    from tl_rome.cli import demo_run as demo
    from tl_rome.cli import output, tables
    from tl_rome.facts import EditRequest

    request = EditRequest(template, subject, target_new, target_true)
    output.check_file(out)
    if editor.is_fine_tuning and (covariance is not None or contexts != Contexts.auto):
        raise InputError(f"{editor} fine-tunes on the prompt alone; leave out --covariance and --contexts")
    chosen_layer = layer_choice(layer)
    statistics = editors.KeyCovariance.load(covariance) if covariance is not None else None
    model, progress = load(), console.shows_progress()
    targets = [target for target in (target_true, target_new) if target is not None]
    prompts = [request.fact.prompt, *(ask or [])]
    before = demo.ask(model, prompts, targets)
    if editor.is_fine_tuning:
        prepared = _fine_tuning(model, editor, chosen_layer)
    else:
        prepared = _rome(model, editor, chosen_layer, statistics, contexts, seed, progress)
    made = prepared(model, request, progress=progress)
    with made.applied(model):
        after = demo.ask(model, prompts, targets)
    console.out.print(tables.receipt_table(made.receipt))
    console.out.print(tables.answer_table(targets, zip(prompts, before, after, strict=True)))
    console.say_written([made.save(out)])
    if getattr(made.receipt, "verdict", None) == NOT_TAKEN:
        console.complain(f"the edit did not take: {request.fact.prompt!r} is still not completed with {target_new!r}")
        raise typer.Exit(NOT_TAKEN_CODE)


def _fine_tuning(model: "HookedModel", name: EditorName, layer: "int | LayerFinder | None") -> "FineTune":
    """Fine-tuning with the settings of that name, of another layer than the default one if it is given."""
    from tl_rome.editors import FineTune
    from tl_rome.editors.by_name import FINE_TUNING

    return FineTune.prepare(model, config=FINE_TUNING[name.value], layer=layer)


def _rome(
    model: "HookedModel",
    name: EditorName,
    layer: "int | LayerFinder | None",
    covariance: "KeyCovariance | None",
    contexts: Contexts,
    seed: int,
    progress: bool,
) -> "Rome":
    """ROME with the settings of that name."""
    from tl_rome.editors import Rome
    from tl_rome.editors.by_name import ROME_CONFIGS

    return Rome.prepare(
        model,
        layer=layer,
        covariance=covariance,
        contexts="recipe" if contexts == Contexts.recipe else None,
        config=ROME_CONFIGS[name.value],
        seed=seed,
        progress=progress,
    )
