"""`tl-rome audit`: whether a model has been edited, with its base or from the weights alone."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.commands.diff import NewTokensOption, PromptsOption, SubjectsOption, TopKOption, show
from tl_rome.cli.model_options import BosOption, DeviceOption, Dtype, DtypeOption, ModelClassOption, ModelLoader
from tl_rome.errors import InputError

FOUND_CODE = 3
"""The exit code if something was found."""


def audit(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a hub name, or a folder in Hugging Face layout.")],
    base: Annotated[
        str | None, typer.Option(help="What it should be; without it only strong edits of one layer are seen.")
    ] = None,
    prompt: PromptsOption = None,
    subject: SubjectsOption = None,
    top_k: TopKOption = 5,
    new_tokens: NewTokensOption = 10,
    repaired: Annotated[
        Path | None, typer.Option(help="New folder for the model without what was found, in Hugging Face layout.")
    ] = None,
    model_class: ModelClassOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.json and audit.md.")] = Path("tl-rome-audit"),
) -> None:
    """Look for edits in a model: of which layer, about whom, saying what; and take them out.

    The exit code is 3 if something was found, 0 if not.
    """
    from tl_rome.audit import audit_model
    from tl_rome.cli.output import check_folder, check_new_folder
    from tl_rome.editors import export_model
    from tl_rome.models.loading import quiet

    check_folder(out)
    if repaired is not None:
        check_new_folder(repaired)
    options = model_class, dtype, device, prepend_bos
    loaded = ModelLoader(model, *options)()
    right = None if base is None else ModelLoader(base, *options)()
    asked: dict[str, Any] = {"prompts": prompt or (), "subjects": subject or ()}
    found = audit_model(loaded, right, **asked, top_k=top_k, new_tokens=new_tokens)
    console.say(f"{model}: {found.verdict}")
    show(found.grids(), {"model": model, "base": base, "verdict": found.verdict, **found.to_dict()}, out, "audit")
    if repaired is not None:
        if found.repair is None:
            raise InputError(f"{model} needs no repair of its MLPs, so nothing was written to {repaired}")
        with quiet(console.shows_progress()), found.repair.applied(loaded):
            console.say_written([export_model(loaded, model, repaired)])
    if not found.is_clean:
        raise typer.Exit(FOUND_CODE)
