"""A table of texts, as Markdown and as a rich table.

Names and texts may come from anywhere: in both forms they are shown, and neither drive a terminal nor act as markup.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tl_rome.storage.text import visible

if TYPE_CHECKING:
    from rich.table import Table

_MARKUP = re.compile(r"[\\`*<|]|\](?=[(\[:])")
"""What Markdown takes as markup within a line, but for what intervals and names such as ft_l hold."""
_ALL_MARKUP = re.compile(r"[\\`*_<>\[\]#|]")


@dataclass(frozen=True)
class Grid:
    """A caption over rows of cells; the first column is a name, the others are numbers or running text."""

    caption: str
    """What the table shows, with n."""
    header: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """Cells, as many in each row as there are columns."""
    prose: bool = False
    """Whether cells are running text: aligned to the left, and shown by Markdown as they are."""

    @property
    def markdown(self) -> str:
        """The table in Markdown, with its caption below."""
        rule = ("---", *("---" if self.prose else "--:" for _ in self.header[1:]))
        rows = ([in_markdown(cell, prose=self.prose) for cell in row] for row in (self.header, *self.rows))
        header, *lines = (" | ".join(row) for row in rows)
        table = (f"| {line} |" for line in (header, " | ".join(rule), *lines))
        return "\n".join([*table, "", in_markdown(self.caption), ""])

    @property
    def table(self) -> "Table":
        """The table for a terminal that is wide enough."""
        return self.tables()[0]

    def tables(self, width: int | None = None) -> list["Table"]:
        """The table for a terminal, cut between columns into several where it is too wide for one.

        Args:
            width: Characters in a line; unlimited by default.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        found = []
        for columns in self._parts(width):
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for index in columns:
                table.add_column(
                    Text(visible(self.header[index])), justify="left" if self.prose or not index else "right"
                )
            for row in self.rows:
                table.add_row(*(Text(visible(row[index])) for index in columns))
            found.append(table)
        found[0].caption, found[0].caption_justify = Text(visible(self.caption)), "left"
        return found

    def _parts(self, width: int | None) -> list[list[int]]:
        """Columns of each part; the first column is in all of them."""
        sizes = [2 + max(len(visible(cell)) for cell in column) for column in zip(self.header, *self.rows, strict=True)]
        parts = [[0]]
        for index in range(1, len(sizes)):
            room = None if width is None else width - 1 - sum(sizes[i] for i in parts[-1])
            if room is not None and sizes[index] > room and len(parts[-1]) > 1:
                parts.append([0])
            parts[-1].append(index)
        return parts


def in_markdown(text: str, *, prose: bool = False) -> str:
    """A text as one line of Markdown that shows it, also within a table.

    Args:
        text: Any text.
        prose: Whether it is running text, of which everything is escaped that could be markup.
    """
    shown = visible(" ".join(text.split("\n")))
    return (_ALL_MARKUP if prose else _MARKUP).sub(r"\\\g<0>", shown)
