"""`tl-rome edit`: one fact rewritten, by any editor."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.editor_options import CovarianceOption, EditorName, LayerOption, layer_choice
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import SeedOption, SubjectArgument, TemplateArgument
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors import FineTune, Ke, KnowledgeNeurons, MassEditor, Mend, Rome
    from tl_rome.sites import HookedModel

NOT_TAKEN = "did not take"
"""The receipt's verdict on an edit without effect."""
NOT_TAKEN_CODE = 3
"""The exit code then."""
_TRAINED = "edits the layers that it was trained on: give --trained FILE, made by `tl-rome train`, and no --layer"


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
    trained: Annotated[
        str | None,
        typer.Option(help="File of `tl-rome train`, or hf://owner/name/file, for a trained editor."),
    ] = None,
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
    if editor.is_mass and (covariance is not None or layer is not None):
        raise InputError(f"{editor} edits several layers with statistics of each; leave out --layer and --covariance")
    if not (editor.is_rome or editor.is_mass) and (covariance is not None or contexts != Contexts.auto):
        raise InputError(f"{editor} reads the prompt alone; leave out --covariance and --contexts")
    if editor.is_trained != (trained is not None) or (editor.is_trained and layer is not None):
        raise InputError(f"{editor} {_TRAINED if editor.is_trained else 'is not trained; leave out --trained'}")
    chosen_layer = layer_choice(layer)
    statistics = editors.KeyCovariance.load(covariance) if covariance is not None else None
    model, progress = load(), console.shows_progress()
    targets = [target for target in (target_true, target_new) if target is not None]
    prompts = [request.fact.prompt, *(ask or [])]
    before = demo.ask(model, prompts, targets)
    options = {"layer": chosen_layer, "covariance": statistics, "seed": seed, "progress": progress}
    options["contexts"] = "recipe" if contexts == Contexts.recipe else None
    prepared = _prepare(model, editor, trained, **options)
    made = prepared(model, request, progress=progress)
    with made.applied(model):
        after = demo.ask(model, prompts, targets)
    console.out.print(tables.receipt_table(made.receipt))
    console.out.print(tables.answer_table(targets, zip(prompts, before, after, strict=True)))
    console.say_written([made.save(out)])
    if getattr(made.receipt, "verdict", None) == NOT_TAKEN:
        console.complain(f"the edit did not take: {request.fact.prompt!r} is still not completed with {target_new!r}")
        raise typer.Exit(NOT_TAKEN_CODE)


def _prepare(
    model: "HookedModel", name: EditorName, trained: str | None, **options: Any
) -> "Rome | FineTune | KnowledgeNeurons | MassEditor | Mend | Ke":
    """The editor of that name; a trained one comes from its file."""
    from tl_rome.editors import load_trained
    from tl_rome.editors.by_name import editor_by_name

    if trained is None:
        return editor_by_name(model, name.value, **options)
    editor = load_trained(trained, model)
    if editor.config.preset != name:
        raise InputError(f"{trained} holds {editor.config.preset!r}; name that as --editor, or another file")
    return editor
