"""What commands print on: tables and plain lines on stdout."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

out = Console()


def say(line: str) -> None:
    """Print a line as it is, unbroken."""
    out.print(Text(line), soft_wrap=True)


def say_written(files: Iterable[Path]) -> None:
    """Name the files that were written."""
    for file in files:
        say(f"wrote {file}")
