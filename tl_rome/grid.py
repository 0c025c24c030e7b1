"""A table of texts, as Markdown and as a rich table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_SPECIAL = "\\`*_<>[]#|"
"""What Markdown takes as markup within a line."""


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
        special = _SPECIAL if self.prose else "|"
        rule = ("---", *("---" if self.prose else "--:" for _ in self.header[1:]))
        rows = (tuple(_escaped(cell, special) for cell in row) for row in (self.header, *self.rows))
        header, *lines = (" | ".join(row) for row in rows)
        return "\n".join([*(f"| {line} |" for line in (header, " | ".join(rule), *lines)), "", self.caption, ""])

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
                table.add_column(Text(self.header[index]), justify="left" if self.prose or not index else "right")
            for row in self.rows:
                table.add_row(*(Text(row[index]) for index in columns))
            found.append(table)
        found[0].caption, found[0].caption_justify = Text(self.caption), "left"
        return found

    def _parts(self, width: int | None) -> list[list[int]]:
        """Columns of each part; the first column is in all of them."""
        sizes = [2 + max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        parts = [[0]]
        for index in range(1, len(sizes)):
            room = None if width is None else width - 1 - sum(sizes[i] for i in parts[-1])
            if room is not None and sizes[index] > room and len(parts[-1]) > 1:
                parts.append([0])
            parts[-1].append(index)
        return parts


def _escaped(text: str, special: str) -> str:
    return "".join(f"\\{character}" if character in special else character for character in text)
