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
        """The table for a terminal."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=Text(self.caption), caption_justify="left")
        for index, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table
