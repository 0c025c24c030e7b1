"""`tl-rome diff`: how two versions of a model differ, in weights and in what they say."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.model_options import BosOption, DeviceOption, Dtype, DtypeOption, ModelClassOption, ModelLoader
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.grid import Grid

PromptsOption = Annotated[list[str] | None, typer.Option("--prompt", help="A text to continue by both; repeatable.")]
SubjectsOption = Annotated[
    list[str] | None,
    typer.Option("--subject", help="Whom an edit may be about, beside the shipped names; repeatable."),
]
TopKOption = Annotated[int, typer.Option("--top-k", min=1, help="Likeliest next tokens to show.")]
NewTokensOption = Annotated[int, typer.Option("--new-tokens", min=0, help="Length of greedy continuations.")]


def diff(
    base: Annotated[str, typer.Argument(help="smollm2-135m, a hub name, or a folder in Hugging Face layout.")],
    edited: Annotated[str | None, typer.Argument(help="The other model.", show_default="the base with --edit")] = None,
    edit: Annotated[
        list[str] | None, typer.Option(help="File of edits to put on the other, or hf://owner/name/file; repeatable.")
    ] = None,
    prompt: PromptsOption = None,
    subject: SubjectsOption = None,
    top_k: TopKOption = 5,
    new_tokens: NewTokensOption = 10,
    model_class: ModelClassOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
    out: Annotated[Path, typer.Option(help="Folder for diff.json and diff.md.")] = Path("tl-rome-diff"),
) -> None:
    """Compare two versions of a model: which weights differ and how, and what both say to the same prompts."""
    from tl_rome.audit import diff_models
    from tl_rome.cli.commands.export import read_edits
    from tl_rome.cli.output import check_folder
    from tl_rome.editors import compose

    if edited is None and not edit:
        raise InputError("there is nothing to compare with; name a second model, or give --edit FILE")
    check_folder(out)
    edits = [each for location in edit or () for each in read_edits(location)]
    options = model_class, dtype, device, prepend_bos
    first, second = (ModelLoader(name, *options)() for name in (base, edited or base))
    if edits:
        compose(edits).apply(second)
    asked: dict[str, Any] = {"prompts": prompt or (), "subjects": subject or ()}
    found = diff_models(first, second, **asked, top_k=top_k, new_tokens=new_tokens)
    about = {"base": base, "edited": edited or base, "edits": edit or []}
    show(found.grids(), {**about, **found.to_dict()}, out, "diff")


def show(grids: "list[Grid]", data: dict[str, Any], out: Path, name: str) -> None:
    """Print tables, and write them as Markdown and the figures as JSON.

    Raises:
        StorageError: If a file cannot be written.
    """
    import json
    import sys

    from tl_rome.storage.writing import write_whole

    console.say_grids(grids, width=sys.maxsize)  # running text is broken within its cells, not cut into parts
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    files = {"json": text, "md": "\n".join(grid.markdown for grid in grids)}
    console.say_written(write_whole(out / f"{name}.{suffix}", text.encode()) for suffix, text in files.items())
