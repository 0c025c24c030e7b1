"""What commands print on: tables and plain lines on stdout, complaints, warnings and progress bars on stderr.

Text of a user, a record or a model is shown with its control characters escaped, so that it cannot drive the terminal.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tl_rome.storage import text as plain

if TYPE_CHECKING:
    from tl_rome.grid import Grid

out = Console()


def visible(text: str) -> Text:
    """Text as it is, without markup, its control characters as in Python's `repr`."""
    return Text(plain.visible(text))


def say(line: str) -> None:
    """Print a line as it is, unbroken."""
    out.print(visible(line), soft_wrap=True)


def say_written(files: Iterable[Path]) -> None:
    """Name the files that were written."""
    for file in files:
        say(f"wrote {file}")


def say_grids(grids: "Iterable[Grid]", width: int | None = None) -> None:
    """Print tables, each in as many parts as a width asks for; by default the terminal's."""
    for grid in grids:
        out.print(*grid.tables(width or out.width), sep="\n")


def complain(line: str, style: str = "red") -> None:
    """Print why a command ends early, as one line on stderr."""
    Console(stderr=True).print(visible(line.replace("\n", " ")), style=style, soft_wrap=True)


def shows_progress() -> bool:
    """Whether to draw progress bars: on a terminal, not into a log file."""
    return sys.stderr.isatty()


def log_plainly() -> None:
    """Show what the library logs as one line on stderr; for a process that is the command line's own."""
    log = logging.getLogger("tl_rome")
    log.handlers = [_PlainLines()]
    log.propagate = False  # or a handler of another library shows the lines again


class _PlainLines(logging.Handler):
    """Lines such as "warning: ..."."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow")
