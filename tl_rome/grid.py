"""A table of texts, as Markdown and as a rich table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Grid:
    """A caption over rows of cells; the first column is text, the others are aligned as numbers."""

    caption: str
    """What the table shows, with n."""
    header: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """Cells, as many in each row as there are columns."""

    @property
    def markdown(self) -> str:
        """The table in Markdown, with its caption below."""
        lines = (self.header, ("---", *("--:" for _ in self.header[1:])), *self.rows)
        escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        return "\n".join([*(f"| {line} |" for line in escaped), "", self.caption, ""])

    @property
    def table(self) -> "Table":
        """The table for a terminal that is wide enough."""
        return self.tables()[0]

    def tables(self, width: int | None = None) -> list["Table"]:
        """The table for a terminal, cut between columns into several where it is too wide for one.

        Args:
            width: Characters in a line; by default there is no limit.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        found = []
        for columns in self._parts(width):
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for index in columns:
                table.add_column(Text(self.header[index]), justify="right" if index else "left")
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
