"""Means of many records with bootstrap intervals, paired where editors are compared, as tables, Markdown and JSON.

The released code prints 1.96 standard deviations over the root of n. Here records are drawn with replacement, as many
as there are, and the interval is between percentiles of the redrawn means; a difference between two editors redraws the
records that both have, so what is hard about a record cancels. Intervals do not depend on the order of results.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Count, Seed, Share
from tl_rome.bootstrap import interval, resampled_means
from tl_rome.counterfact.metrics.columns import (
    COLUMNS,
    PAPER_COLUMNS,
    RATES,
    SCORE,
    digits,
    group_columns,
    meaning,
)
from tl_rome.counterfact.results import UNEDITED, CaseResult, Conventions
from tl_rome.errors import InputError
from tl_rome.grid import Grid

_MEASURED = tuple(name for name in COLUMNS if name != SCORE)
_RATES = [_MEASURED.index(name) for name in RATES]

Figures = Mapping[int, Mapping[str, float]]
"""What `RecordMetrics` computed, by case_id."""


@dataclass(frozen=True)
class Estimate:
    """A mean over records, or a difference of two, with its interval."""

    mean: float
    """Over the records that have the figure."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """How many records have the figure."""

    def text(self, digits: int = 1) -> str:
        """Mean and interval for a table; a dash where no record has the figure."""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]" if self.n else "-"

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON types; what is not finite is null."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True)
class SummaryTables:
    """Figures of a run by editor; `print(summary.markdown)` or `rich.print(summary.grid().table)`."""

    conventions: Conventions
    """Whose conventions the figures follow."""
    figures: Mapping[str, Figures]
    """Every record's figures, by row: `UNEDITED` first, then the editors."""
    failures: Mapping[str, Mapping[int, str]]
    """Records without a result, by editor: case_id and reason."""
    confidence: Share = 0.95
    """Of the intervals."""
    resamples: Count = 2000
    """Redrawn sets of records."""
    seed: Seed = 0
    """Of the draws."""
    rows: Mapping[str, Mapping[str, Estimate]] = field(init=False)
    """Estimates by row and column."""

    def __post_init__(self) -> None:
        rows = {name: self._estimates(figures) for name, figures in self.figures.items()}
        object.__setattr__(self, "rows", rows)

    @property
    def known_columns(self) -> tuple[str, ...]:
        """`COLUMNS`, then those of the records' own groups."""
        return (*COLUMNS, *self._named)

    @cached_property
    def _named(self) -> tuple[str, ...]:
        return group_columns(each for rows in self.figures.values() for each in rows.values())

    def difference(self, editor: str, baseline: str = UNEDITED) -> Mapping[str, Estimate]:
        """Editor minus baseline by column, over the records that both have, with paired intervals.

        Raises:
            InputError: If a name is unknown, or no record has both.
        """
        for name in (editor, baseline):
            if name not in self.figures:
                raise InputError(f"there are no results of {name!r}; there are {', '.join(self.figures)}")
        if not self.figures[editor].keys() & self.figures[baseline].keys():
            raise InputError(f"no record has results of both {editor!r} and {baseline!r}; evaluate them on the same")
        return self._estimates(self.figures[editor], minus=self.figures[baseline])

    def _estimates(self, figures: Figures, minus: Figures | None = None) -> dict[str, Estimate]:
        """Estimates of one row, or of one minus another over the records of both."""
        sides = [figures] if minus is None else [figures, minus]
        cases = sorted(set.intersection(*(set(side) for side in sides)))
        stacked = torch.stack([_matrix(side, cases, self._named) for side in sides], dim=1)
        present = ~stacked.isnan().any(dim=1)
        values, n = stacked.nan_to_num(), present.sum(dim=0)
        means = (values * present[:, None]).sum(dim=0) / n
        generator = torch.Generator().manual_seed(self.seed)
        redrawn = resampled_means(values, present, resamples=self.resamples, generator=generator)
        point, draws = _with_score(means), _with_score(redrawn)
        if minus is None:
            point, draws = point[..., 0, :], draws[..., 0, :]
        else:
            point, draws = (each[..., 0, :] - each[..., 1, :] for each in (point, draws))
        low, high = interval(draws, self.confidence)
        counts = [int(n[_RATES].min()), *n.tolist()]
        columns = zip(
            (SCORE, *_MEASURED, *self._named), point.tolist(), low.tolist(), high.tolist(), counts, strict=True
        )
        return {name: Estimate(*figures) for name, *figures in columns}

    @property
    def columns(self) -> tuple[str, ...]:
        """The source's columns, then the others; all of them only where something was measured."""
        paper = PAPER_COLUMNS[self.conventions]
        measured = [name for name in self.known_columns if any(row[name].n for row in self.rows.values())]
        return (*(name for name in paper if name in measured), *(name for name in measured if name not in paper))

    @property
    def markdown(self) -> str:
        """All measured columns, their differences to the unedited model, and what the columns are."""
        parts = [self.grid(self.columns).markdown]
        if UNEDITED in self.rows and len(self.rows) > 1:
            parts.append(self.differences(columns=self.columns).markdown)
        legend = [f"- `{name}`: {meaning(name)}" for name in self.known_columns if name in self.columns]
        return "\n".join([*parts, *legend, ""])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: estimates by row and column, also of the differences to the unedited model."""
        others = [name for name in self.rows if name != UNEDITED] if UNEDITED in self.rows else []
        return {
            "conventions": self.conventions,
            "records": len(set().union(*self.figures.values(), *self.failures.values())),
            "confidence": self.confidence,
            "rows": {name: _plain(row) for name, row in self.rows.items()},
            "differences": {name: _plain(self.difference(name)) for name in others},
            "failures": {name: dict(failed) for name, failed in self.failures.items() if failed},
        }

    def grid(self, columns: Sequence[str] | None = None) -> Grid:
        """The table: every row's means with intervals.

        Args:
            columns: Names of `COLUMNS`; None takes those that the source of the conventions has.

        Raises:
            InputError: If a column is unknown.
        """
        chosen = PAPER_COLUMNS[self.conventions] if columns is None else tuple(columns)
        rows = tuple((name, str(len(self.figures[name])), *self._cells(row, chosen)) for name, row in self.rows.items())
        return Grid(self._caption("bootstrap over records"), ("editor", "n", *chosen), rows)

    def differences(self, baseline: str = UNEDITED, columns: Sequence[str] | None = None) -> Grid:
        """The table of differences: every other row minus the baseline, with paired intervals.

        Raises:
            InputError: See `difference`.
        """
        chosen = PAPER_COLUMNS[self.conventions] if columns is None else tuple(columns)
        rows = []
        for name in self.rows:
            if name != baseline:
                found = self.difference(name, baseline)
                shared = self.figures[name].keys() & self.figures[baseline].keys()
                rows.append((f"{name} - {baseline}", str(len(shared)), *self._cells(found, chosen)))
        return Grid(self._caption("paired bootstrap over records"), ("difference", "n", *chosen), tuple(rows))

    def _cells(self, row: Mapping[str, Estimate], columns: Sequence[str]) -> list[str]:
        unknown = [name for name in columns if name not in row]
        if unknown:
            raise InputError(f"there is no column {', '.join(unknown)}; there are {', '.join(row)}")
        return [row[name].text(digits(name, self.conventions)) for name in columns]

    def _caption(self, method: str) -> str:
        failed = sum(map(len, self.failures.values()))
        n = len(set().union(*self.figures.values()))
        text = f"n = {n} records; mean [{self.confidence:.0%} interval, {method}]; conventions: {self.conventions}"
        return f"{text}; {failed} failed edits are left out" if failed else text


def row_labels(results: Sequence[CaseResult]) -> dict[tuple[str, str], str]:
    """Names of rows: the editor's, with the hash of its settings where one editor ran with several."""
    ran = dict.fromkeys((result.editor, result.config) for result in results)
    names = [editor for editor, _ in ran]
    return {(name, config): name if names.count(name) == 1 else f"{name} ({config[:8]})" for name, config in ran}


def _matrix(figures: Figures, cases: Sequence[int], named: Sequence[str]) -> Float[Tensor, "record column"]:
    for case in cases:
        if lacking := [name for name in _MEASURED if name not in figures[case]]:
            raise InputError(f"the figures of record {case} lack {', '.join(lacking)}; take them from summarize")
    rows = [
        [*(figures[case][name] for name in _MEASURED), *(figures[case].get(name, math.nan) for name in named)]
        for case in cases
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _with_score(means: Float[Tensor, "*draws side column"]) -> Float[Tensor, "*draws side columns"]:
    """Put S first, the harmonic mean of ES, PS and NS; it is 0 where one of them is."""
    score = len(_RATES) / (1 / means[..., _RATES]).sum(dim=-1, keepdim=True)
    return torch.cat([score, means], dim=-1)


def _plain(row: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: each.to_dict() for name, each in row.items()}
