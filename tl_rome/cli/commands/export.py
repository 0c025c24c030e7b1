"""`tl-rome export`: a model with edits, as a Hugging Face folder, or the edits alone as a LoRA adapter of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.model_options import DEFAULT_MODEL, Dtype, DtypeOption, ModelClass, ModelLoader, ModelOption
from tl_rome.errors import StorageError

if TYPE_CHECKING:
    from tl_rome.editors import BatchEdit, Edit


def export(
    edits: Annotated[list[str], typer.Argument(help="Files of edits, or hf://owner/name/file, in order.")],
    out: Annotated[Path, typer.Option(help="New or empty folder to write to.")],
    model: ModelOption = DEFAULT_MODEL,
    dtype: DtypeOption = Dtype.float32,
    peft: Annotated[
        bool, typer.Option("--peft", help="Write the edits alone, as a LoRA adapter for the PEFT library.")
    ] = False,
) -> None:
    """Write the model with one edit or several in Hugging Face layout, for any library to load."""
    from tl_rome.cli.output import check_new_folder
    from tl_rome.editors import compose, export_model
    from tl_rome.editors.edits.receipts.receipt import describe_places
    from tl_rome.models.loading import quiet

    check_new_folder(out)
    whole = compose(edit for location in edits for edit in read_edits(location))
    loaded = ModelLoader(model, ModelClass.bridge, dtype, "cpu")()
    with quiet(console.shows_progress()):
        if peft:
            whole.to_peft(out, loaded, model)
        else:
            with whole.applied(loaded):
                export_model(loaded, model, out)
    for edit in whole.edits:
        console.say(f"{edit.label.removeprefix('edit ')}, {describe_places(edit.places)}")
    console.say_written([out])


def read_edits(location: str) -> "tuple[Edit | BatchEdit, ...]":
    """The edit or the sequence of edits that a file holds."""
    from tl_rome.editors import BatchEdit, Edit, EditSequence

    try:
        return EditSequence.load(location).edits
    except StorageError:  # a single edit
        pass
    try:
        return (BatchEdit.load(location),)
    except StorageError:  # of one fact; or no edit at all, which the next line says
        return (Edit.load(location),)
