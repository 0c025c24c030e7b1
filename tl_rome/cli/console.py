"""What commands print on: tables and plain lines on stdout, complaints on stderr."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from tl_rome.grid import Grid

out = Console()


def say(line: str) -> None:
    """Print a line as it is, unbroken."""
    out.print(Text(line), soft_wrap=True)


def say_written(files: Iterable[Path]) -> None:
    """Name the files that were written."""
    for file in files:
        say(f"wrote {file}")


def say_grids(grids: "Iterable[Grid]") -> None:
    """Print tables, each in as many parts as the terminal's width asks for."""
    for grid in grids:
        out.print(*grid.tables(out.width), sep="\n")


def complain(line: str) -> None:
    """Print why a command ends early, as one line on stderr."""
    Console(stderr=True).print(Text(line.replace("\n", " "), style="red"), soft_wrap=True)
