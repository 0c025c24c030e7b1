"""`tl-rome push`: an edit, key statistics or a trained editor, with a card, to the model hub."""

from pathlib import Path
from typing import Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.model_options import Dtype, DtypeOption, ModelClass, ModelLoader


def push(
    file: Annotated[Path, typer.Argument(help="What edit, covariance or train wrote.")],
    repo: Annotated[str, typer.Argument(help="Repository of the hub, owner/name; it is made if need be.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="For an edit: name or folder of its model, to write a PEFT adapter beside it."),
    ] = None,
    dtype: DtypeOption = Dtype.float32,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository that only you see.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files of the same names.")] = False,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", help="Send nothing; write the files into this new or empty folder.")
    ] = None,
) -> None:
    """Share a file on the model hub, with a card that says what it is and how to load it."""
    from tl_rome.cli.output import check_new_folder
    from tl_rome.editors import BatchEdit, Edit, EditSequence, push_file
    from tl_rome.errors import InputError
    from tl_rome.models.loading import quiet
    from tl_rome.storage.files import read_header

    if dry_run is not None:
        check_new_folder(dry_run)
    classes = {each.kind: each for each in (Edit, BatchEdit, EditSequence)}
    kind = read_header(file).get("kind")
    with quiet(console.shows_progress()):
        if kind in classes:
            edit = classes[kind].load(file)
            loaded = None if model is None else ModelLoader(model, ModelClass.bridge, dtype, "cpu")()
            location = edit.push_to_hub(
                repo, model=loaded, source=model, file=file.name, private=private, replace=replace, dry_run=dry_run
            )
            if model is None:
                console.say("no PEFT adapter: name the edit's model with --model to write one")
        elif model is not None:
            raise InputError(f"--model is for edits, {file} holds {kind!r}; leave it out")
        else:
            location = push_file(file, repo, private=private, replace=replace, dry_run=dry_run)
    if dry_run is None:
        console.say(f"pushed {location}")
    else:
        console.say_written([dry_run])
