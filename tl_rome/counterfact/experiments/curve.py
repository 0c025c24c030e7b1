"""Figures as they change with one setting: what sweeps and sequential edits have in common."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tl_rome.counterfact.metrics.columns import COLUMNS, RATES, SCORE
from tl_rome.counterfact.report.tables import Estimate, SummaryTables
from tl_rome.counterfact.results import UNEDITED
from tl_rome.errors import InputError, StorageError
from tl_rome.grid import Grid

CURVES = (SCORE, *RATES)
"""Columns that are drawn and tabulated."""
_KEPT = (*CURVES, "EM", "PM", "NM")

Estimates = Mapping[str, Estimate]
"""By column."""


@dataclass(frozen=True)
class Curve:
    """One editor's figures at several values of one setting, with intervals over records.

    Raises:
        InputError: If there is no value, or not one row per value.
    """

    name: str
    """What was evaluated, such as "ft_l, epsilon 0.0005"."""
    along: str
    """The setting, such as "layer"."""
    x: tuple[int | float, ...]
    """Its values, rising."""
    rows: tuple[Estimates, ...]
    """Estimates at each value; NaN where nothing could be measured."""
    unedited: Estimates
    """Those of the unedited model."""
    confidence: float = 0.95
    """Of the intervals."""

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.rows):
            raise InputError(f"{len(self.x)} values and {len(self.rows)} rows; give a row for each of at least one")

    @classmethod
    def of(
        cls, summary: SummaryTables, name: str, along: str, rows: Mapping[int, str] | Mapping[float, str]
    ) -> "Curve":
        """The curve through some rows of a summary.

        Args:
            summary: Holds them, unless all their edits failed.
            name: See `Curve`.
            along: See `Curve`.
            rows: The row's name at each value.
        """
        named: dict[int | float, str] = dict(rows.items())
        values = tuple(sorted(named))
        found = tuple(_kept(summary.rows.get(named[x])) for x in values)
        return cls(name, along, values, found, _kept(summary.rows.get(UNEDITED)), summary.confidence)

    def grid(self, columns: Sequence[str] = CURVES) -> Grid:
        """The figures as a table, the unedited model first.

        Raises:
            InputError: If a column is not one of those that a curve keeps.
        """
        for column in columns:
            if column not in self.unedited:
                raise InputError(f"column {column!r} is unknown; choose among {', '.join(self.unedited)}")
        rows = [(UNEDITED, self.unedited), *zip(map("{:g}".format, self.x), self.rows, strict=True)]
        cells = tuple((x, str(row[SCORE].n), *(row[column].text() for column in columns)) for x, row in rows)
        return Grid(
            f"{self.name}; mean [{self.confidence:.0%} interval over records]", (self.along, "n", *columns), cells
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN is null."""
        rows = [_plain(row) for row in self.rows]
        return {**asdict(self), "x": list(self.x), "rows": rows, "unedited": _plain(self.unedited)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Curve":
        """Read what `to_dict` wrote.

        Raises:
            StorageError: If a part is missing.
        """
        try:
            read = {"x": tuple(data["x"]), "rows": tuple(map(_read, data["rows"])), "unedited": _read(data["unedited"])}
            return cls(**{**data, **read})
        except (KeyError, TypeError, AttributeError, InputError) as error:
            raise StorageError(f"a stored curve is damaged ({error!r}); make it again") from error


def _kept(row: Estimates | None) -> Estimates:
    missing = dict.fromkeys(COLUMNS, Estimate(math.nan, math.nan, math.nan, 0))
    return {column: (row or missing)[column] for column in _KEPT}


def _plain(row: Estimates) -> dict[str, Any]:
    return {column: estimate.to_dict() for column, estimate in row.items()}


def _read(row: Mapping[str, Mapping[str, Any]]) -> Estimates:
    found = {}
    for column, estimate in row.items():
        figures = (math.nan if estimate[name] is None else estimate[name] for name in ("mean", "low", "high"))
        found[column] = Estimate(*figures, n=estimate["n"])
    return found
