"""The commands by subject, in the order of `tl-rome --help`, and how their errors are shown."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tl_rome.cli import console
from tl_rome.cli.commands.audit import audit
from tl_rome.cli.commands.covariance import covariance
from tl_rome.cli.commands.demo import demo
from tl_rome.cli.commands.diff import diff
from tl_rome.cli.commands.edit import edit
from tl_rome.cli.commands.export import export
from tl_rome.cli.commands.measuring.compare import compare
from tl_rome.cli.commands.measuring.generate import generate
from tl_rome.cli.commands.measuring.localization import localization
from tl_rome.cli.commands.measuring.mass import mass
from tl_rome.cli.commands.measuring.sequential import sequential
from tl_rome.cli.commands.measuring.sweep import sweep
from tl_rome.cli.commands.push import push
from tl_rome.cli.commands.trace import trace
from tl_rome.cli.commands.trace_many import trace_many
from tl_rome.cli.commands.train import train
from tl_rome.errors import TLRomeError

_SUBJECTS = {
    "Start here": (demo,),
    "Tracing": (trace, trace_many),
    "Editing": (edit, covariance, train, export, push),
    "Comparing models": (diff, audit),
    "Measuring": (compare, sweep, localization, sequential, mass, generate),
}
_RESUMED = {"trace-many", "compare", "sweep", "localization", "sequential", "mass"}
"""Commands that go on from stored results."""


class _Commands(TyperGroup):
    """The commands; an error of ours and Ctrl-C become one-line messages."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TLRomeError as error:
            console.complain(f"error: {error}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            hints = stop.args or (["run the same command again to go on"] if ctx.invoked_subcommand in _RESUMED else [])
            console.complain("; ".join(["interrupted", *hints]))
            raise typer.Exit(130) from None


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
    console.log_plainly()
    app(prog_name="tl-rome")
