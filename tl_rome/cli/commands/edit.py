"""`tl-rome edit`: one fact rewritten, by any editor, or many by a mass editor."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.editor_options import CovarianceOption, EditorName, LayerOption, layer_choice
from tl_rome.cli.inputs.statistics import Statistics
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import SUBJECT_HELP, TEMPLATE_HELP, SeedOption
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors import FineTune, Ke, KnowledgeNeurons, MassEditor, Mend, Rome
    from tl_rome.facts import EditRequest
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
    template: Annotated[str | None, typer.Argument(help=TEMPLATE_HELP)] = None,
    subject: Annotated[str | None, typer.Argument(help=SUBJECT_HELP)] = None,
    target_new: Annotated[str | None, typer.Argument(help="What the model should say.")] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            "--requests",
            exists=True,
            dir_okay=False,
            help="JSONL of many facts for a mass editor, instead of one: template, subject, target_new in each line.",
        ),
    ] = None,
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
    """Rewrite one fact, or many at once, save the edit, and show what the model says before and after.

    An edit that did not take is saved too, and the exit code is 3.
    """
    from tl_rome.cli import demo_run as demo
    from tl_rome.cli import output, tables

    asked = _requests(editor, template, subject, target_new, target_true, requests)
    output.check_file(out)
    if editor.is_mass and layer is not None:
        raise InputError(
            f"{editor} edits several layers; leave out --layer, or give a folder of theirs as --covariance"
        )
    if not (editor.is_rome or editor.is_mass) and (covariance is not None or contexts != Contexts.auto):
        raise InputError(f"{editor} reads the prompt alone; leave out --covariance and --contexts")
    if editor.is_trained != (trained is not None) or (editor.is_trained and layer is not None):
        raise InputError(f"{editor} {_TRAINED if editor.is_trained else 'is not trained; leave out --trained'}")
    chosen_layer = layer_choice(layer)
    statistics = Statistics.read(covariance)
    if covariance is not None:
        statistics.check(rome=editor.is_rome, mass=editor.is_mass)
    model, progress = load(), console.shows_progress()
    targets = [target for target in (target_true, target_new) if target is not None]
    prompts = [*([] if target_new is None else [asked[0].fact.prompt]), *(ask or [])]
    before = demo.ask(model, prompts, targets) if prompts else []
    options = {"layer": chosen_layer, "seed": seed, "progress": progress}
    if editor.is_mass:
        options["covariances"] = statistics.of_several
    elif editor.is_rome:
        options["covariance"] = statistics.of_one(model, chosen_layer)
    options["contexts"] = "recipe" if contexts == Contexts.recipe else None
    prepared: Any = _prepare(model, editor, trained, **options)
    made = prepared(model, asked if editor.is_mass else asked[0], progress=progress)
    with made.applied(model):
        after = demo.ask(model, prompts, targets) if prompts else []
    console.out.print(tables.receipt_table(made.receipt))
    if prompts:
        console.out.print(tables.answer_table(targets, zip(prompts, before, after, strict=True)))
    console.say_written([made.save(out)])
    if getattr(made.receipt, "verdict", None) == NOT_TAKEN:
        first = asked[0]
        of_many = f"{len(asked)} facts, the first of which is " if len(asked) > 1 else ""
        what = f"{of_many}{first.fact.prompt!r} is still not completed with {first.target_new!r}"
        console.complain(f"the edit did not take: {what}")
        raise typer.Exit(NOT_TAKEN_CODE)


def _requests(
    editor: EditorName,
    template: str | None,
    subject: str | None,
    target_new: str | None,
    target_true: str | None,
    file: Path | None,
) -> "list[EditRequest]":
    """The fact that arguments state, or those of a file."""
    from tl_rome.editors import load_requests
    from tl_rome.editors.mass.requests import check_batch
    from tl_rome.facts import EditRequest

    stated = (template, subject, target_new)
    if file is None:
        if template is None or subject is None or target_new is None:
            raise InputError("a fact is a template, its subject and what the model should say; or give --requests FILE")
        return [EditRequest(template, subject, target_new, target_true)]
    if any(part is not None for part in (*stated, target_true)):
        raise InputError("a fact and --requests are both given; write the fact into the file")
    found = load_requests(file)
    if not found:
        raise InputError(f"{file} has no line")
    if not editor.is_mass and len(found) > 1:
        raise InputError(f"{editor} writes one fact, and {file} has {len(found)}; use a mass editor, as --editor memit")
    check_batch(found)
    return found


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
