"""The commands by subject, in the order of `tl-rome --help`, and what becomes of their errors."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from tl_rome.cli.commands.covariance import covariance
from tl_rome.cli.commands.demo import demo
from tl_rome.cli.commands.edit import edit
from tl_rome.cli.commands.experiments import multi, sweep
from tl_rome.cli.commands.export import export
from tl_rome.cli.commands.generate import generate
from tl_rome.cli.commands.table3 import table3
from tl_rome.cli.commands.trace import average, trace
from tl_rome.errors import TLRomeError

_SUBJECTS = {
    "Start here": (demo,),
    "Tracing": (trace, average),
    "Editing": (edit, covariance, export),
    "Measuring": (table3, sweep, multi, generate),
}


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
for subject, commands in _SUBJECTS.items():
    for command in commands:
        app.command(rich_help_panel=subject)(command)


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


def main() -> None:
    """Run the command line; the entry point of `tl-rome`."""
    app(prog_name="tl-rome")
