"""Results of many records as tables: means with bootstrap intervals over records, paired where editors are compared.

The released code prints 1.96 standard deviations over the root of n. Here records are drawn with replacement, as many
as there are, and the interval is between percentiles of the redrawn means; a difference between two editors redraws the
records that both have, so what is hard about a record cancels. Intervals do not depend on the order of results.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.bootstrap import interval, resampled_means
from tl_rome.counterfact.dataset.references import ReferenceTexts
from tl_rome.counterfact.metrics.columns import COLUMNS, PAPER_COLUMNS, RATES, SCORE, Meter, digits
from tl_rome.counterfact.metrics.texts import word_tokenizer
from tl_rome.counterfact.results import UNEDITED, CaseResult, Preset
from tl_rome.errors import InputError
from tl_rome.grid import Grid

_MEASURED = tuple(name for name in COLUMNS if name != SCORE)
_RATES = [_MEASURED.index(name) for name in RATES]

Figures = Mapping[int, Mapping[str, float]]
"""What `Meter` read, by case_id."""


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


@dataclass(frozen=True)
class Summary:
    """Table 3 of a run; `print(summary.grid().markdown)` or `rich.print(summary.grid().table)`."""

    preset: Preset
    """Whose conventions the figures follow."""
    figures: Mapping[str, Figures]
    """Every record's figures, by row: `UNEDITED` first, then the editors."""
    failures: Mapping[str, Mapping[int, str]]
    """Records without a result, by editor: case_id and reason."""
    confidence: float = 0.95
    """Of the intervals."""
    resamples: int = 2000
    """Redrawn sets of records."""
    seed: int = 0
    """Of the draws."""
    rows: Mapping[str, Mapping[str, Estimate]] = field(init=False)
    """Estimates by row and column."""

    def __post_init__(self) -> None:
        rows = {name: self._estimate([figures], sorted(figures)) for name, figures in self.figures.items()}
        object.__setattr__(self, "rows", rows)

    def difference(self, editor: str, baseline: str = UNEDITED) -> Mapping[str, Estimate]:
        """Editor minus baseline by column, over the records that both have, with paired intervals.

        Raises:
            InputError: If a name is unknown, or no record has both.
        """
        for name in (editor, baseline):
            if name not in self.figures:
                raise InputError(f"there are no results of {name!r}; there are {', '.join(self.figures)}")
        both = sorted(self.figures[editor].keys() & self.figures[baseline].keys())
        if not both:
            raise InputError(f"no record has results of both {editor!r} and {baseline!r}; evaluate them on the same")
        return self._estimate([self.figures[editor], self.figures[baseline]], both)

    def _estimate(self, sides: Sequence[Figures], cases: Sequence[int]) -> dict[str, Estimate]:
        """Estimates of one side, or of the first minus the second."""
        stacked = torch.stack([_matrix(side, cases) for side in sides], dim=1)
        present = ~stacked.isnan().any(dim=1)
        values, n = stacked.nan_to_num(), present.sum(dim=0)
        means = (values * present[:, None]).sum(dim=0) / n
        generator = torch.Generator().manual_seed(self.seed)
        redrawn = resampled_means(values, present, resamples=self.resamples, generator=generator)
        point, draws = (_contrast(_with_score(x)) for x in (means, redrawn))
        low, high = interval(draws, self.confidence)
        counts = [int(n[_RATES].min()), *n.tolist()]
        columns = zip((SCORE, *_MEASURED), point.tolist(), low.tolist(), high.tolist(), counts, strict=True)
        return {name: Estimate(*figures) for name, *figures in columns}

    def grid(self, columns: Sequence[str] | None = None) -> Grid:
        """The table: every row's means with intervals.

        Args:
            columns: Names of `COLUMNS`; None takes those that the preset's source has.

        Raises:
            InputError: If a column is unknown.
        """
        chosen = PAPER_COLUMNS[self.preset] if columns is None else tuple(columns)
        rows = tuple((name, str(len(self.figures[name])), *self._cells(row, chosen)) for name, row in self.rows.items())
        return Grid(self._caption("bootstrap over records"), ("editor", "n", *chosen), rows)

    def differences(self, baseline: str = UNEDITED, columns: Sequence[str] | None = None) -> Grid:
        """The table of differences: every other row minus the baseline, with paired intervals.

        Raises:
            InputError: See `difference`.
        """
        chosen = PAPER_COLUMNS[self.preset] if columns is None else tuple(columns)
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
        return [row[name].text(digits(name, self.preset)) for name in columns]

    def _caption(self, method: str) -> str:
        failed = sum(map(len, self.failures.values()))
        n = len(set().union(*self.figures.values()))
        text = f"n = {n} records; mean [{self.confidence:.0%} interval, {method}]; conventions: {self.preset}"
        return f"{text}; {failed} failed edits are left out" if failed else text


def summarize(
    results: Iterable[CaseResult],
    *,
    references: ReferenceTexts | None = None,
    preset: Preset = "released",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Metrics of every record, and their means with intervals, for the unedited model and every editor.

    Args:
        results: Of one model and one data set; any number of editors.
        references: Texts for RS, see `load_references`; without them RS is not measured.
        preset: Whose conventions to follow.
        confidence: Of the intervals.
        resamples: How often to redraw the records.
        seed: Of the draws.

    Raises:
        InputError: If there are no results, those of several models or data sets, or two of one record and editor.
    """
    results = list(results)
    origins = {(result.model, result.dataset) for result in results}
    if len(origins) != 1:
        raise InputError(
            f"these {len(results)} results are of {len(origins)} pairs of model and data set; give one pair's"
        )
    meter, labels = Meter(word_tokenizer(), references, preset), row_labels(results)
    figures: dict[str, dict[int, Mapping[str, float]]] = {UNEDITED: {}}
    failures: dict[str, dict[int, str]] = {}
    seen: set[tuple[str, int]] = set()
    for result in results:
        label, case = labels[result.editor, result.config], result.case_id
        if (label, case) in seen:
            raise InputError(f"record {case} has two results of {label!r}; keep one")
        seen.add((label, case))
        rows, failed = figures.setdefault(label, {}), failures.setdefault(label, {})
        if result.before is not None and case not in figures[UNEDITED]:
            figures[UNEDITED][case] = meter.read(result.before, result.rewrite)
        if result.after is None:
            failed[case] = result.error or "no reason was recorded"
        else:
            rows[case] = meter.read(result.after, result.rewrite, result.divergence)
    measured = {name: rows for name, rows in figures.items() if rows}
    return Summary(preset, measured, failures, confidence, resamples, seed)


def row_labels(results: Sequence[CaseResult]) -> dict[tuple[str, str], str]:
    """Names of rows: the editor's, with the hash of its settings where one editor ran with several."""
    ran = dict.fromkeys((result.editor, result.config) for result in results)
    names = [editor for editor, _ in ran]
    return {(name, config): name if names.count(name) == 1 else f"{name} ({config[:8]})" for name, config in ran}


def _matrix(figures: Figures, cases: Sequence[int]) -> Float[Tensor, "record column"]:
    rows = [[figures[case][name] for name in _MEASURED] for case in cases]
    return torch.tensor(rows, dtype=torch.float64)


def _with_score(means: Float[Tensor, "*draws side column"]) -> Float[Tensor, "*draws side columns"]:
    """Put S first, the harmonic mean of ES, PS and NS; it is 0 where one of them is."""
    score = len(_RATES) / (1 / means[..., _RATES]).sum(dim=-1, keepdim=True)
    return torch.cat([score, means], dim=-1)


def _contrast(sides: Float[Tensor, "*draws side columns"]) -> Float[Tensor, "*draws columns"]:
    return sides[..., 0, :] if sides.shape[-2] == 1 else sides[..., 0, :] - sides[..., 1, :]
