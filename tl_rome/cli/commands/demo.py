"""`tl-rome demo`: one fact from trace to edit."""

from pathlib import Path
from typing import Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.model_options import ModelLoader, with_model


@with_model
def demo(
    load: ModelLoader,
    out: Annotated[Path, typer.Option(help="Folder for figures, edit and table.")] = Path("tl-rome-demo"),
) -> None:
    """Find where the model keeps the Eiffel Tower's city, make it Rome, and ask before and after; about two minutes."""
    from tl_rome.cli import tables
    from tl_rome.cli.demo_run import FACT, run_demo
    from tl_rome.cli.output import check_folder

    check_folder(out)
    result = run_demo(load(), out, progress=console.shows_progress())
    console.out.print(tables.trace_table(result.traces, FACT.prompt, cells=2))
    console.out.print(tables.receipt_table(result.edit.receipt))
    console.out.print(tables.demo_table(result))
    for when, text in zip(("before", "after"), result.continuation, strict=True):
        console.say(f"{when}: {text}")
    console.out.print(result.summary, style="bold", highlight=False)
    console.say_written(result.files)
