"""zsRE's figures of several editors: means over records with bootstrap intervals, paired where editors are compared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Count, Seed, Share
from tl_rome.bootstrap import interval, resampled_means
from tl_rome.counterfact.report.tables import Estimate
from tl_rome.counterfact.results import UNEDITED
from tl_rome.errors import InputError
from tl_rome.grid import Grid
from tl_rome.storage.writing import write_whole
from tl_rome.zsre.scores import ZsreScores

if TYPE_CHECKING:
    import pandas

ZSRE_COLUMNS: Mapping[str, str] = {
    "S": "harmonic mean of the other three",
    "efficacy": "tokens of the answer that are the argmax after the question, %",
    "paraphrase": "the same after the question in other words, %",
    "specificity": "tokens of the unrelated question's true answer that are the argmax, %",
}
"""Every figure with its meaning; all but S are means over an answer's tokens, then over records."""


@dataclass(frozen=True)
class ZsreResults:
    """Scores of every record by editor; `print(results.grid().markdown)`.

    Raises:
        InputError: If no row has a record.
    """

    figures: Mapping[str, Mapping[int, ZsreScores]]
    """By row, `UNEDITED` first, then by case_id; S of a single record is not defined."""
    failures: Mapping[str, Mapping[int, str]]
    """Records without scores, by editor: case_id and reason."""
    confidence: Share = 0.95
    """Of the intervals."""
    resamples: Count = 2000
    """Redrawn sets of records."""
    seed: Seed = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if not any(self.figures.values()):
            raise InputError("no record has scores; look at the reasons in the log")

    def estimates(self, editor: str, minus: str | None = None) -> Mapping[str, Estimate]:
        """Figures of a row in percent, by column, or its difference to another over the records of both, in points.

        Raises:
            InputError: If a name is unknown, or there is no record.
        """
        sides = (editor,) if minus is None else (editor, minus)
        if unknown := [name for name in sides if name not in self.figures]:
            raise InputError(f"there are no results of {unknown[0]!r}; there are {', '.join(self.figures)}")
        cases = sorted(set.intersection(*(set(self.figures[name]) for name in sides)))
        if not cases:
            raise InputError(f"no record has scores of {' and '.join(sides)}")
        scored = [[self.figures[side][case] for side in sides] for case in cases]
        rows = [[(each.efficacy, each.paraphrase, each.specificity) for each in record] for record in scored]
        values = 100 * torch.tensor(rows, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.seed)
        present = torch.ones(len(cases), values.shape[-1], dtype=torch.bool)
        redrawn = resampled_means(values, present, resamples=self.resamples, generator=generator)
        point, draws = (_with_score(each) for each in (values.mean(dim=0), redrawn))
        if minus is not None:
            point, draws = (each[..., :1, :] - each[..., 1:, :] for each in (point, draws))
        low, high = interval(draws[:, 0], self.confidence)
        columns = zip(ZSRE_COLUMNS, point[0].tolist(), low.tolist(), high.tolist(), strict=True)
        return {name: Estimate(*ends, n=len(cases)) for name, *ends in columns}

    @property
    def rows(self) -> Mapping[str, Mapping[str, Estimate]]:
        """Estimates of every row that has a record."""
        return {name: self.estimates(name) for name, scored in self.figures.items() if scored}

    def grid(self, baseline: str | None = None) -> Grid:
        """The table: means with intervals, or every other row minus the baseline's.

        Raises:
            InputError: See `estimates`.
        """
        names = [name for name, scored in self.figures.items() if scored and name != baseline]
        found = {name: self.estimates(name, baseline) for name in names}
        end = "" if baseline is None else f" - {baseline}"
        rows = [(name + end, str(row["S"].n), *(each.text() for each in row.values())) for name, row in found.items()]
        failed = sum(map(len, self.failures.values()))
        paired = "" if baseline is None else "paired "
        caption = f"zsRE; mean [{self.confidence:.0%} interval, {paired}bootstrap over records]"
        caption += f"; {failed} failed edits are left out" if failed else ""
        return Grid(caption, ("editor", "n", *ZSRE_COLUMNS), tuple(rows))

    def to_frame(self) -> "pandas.DataFrame":
        """One row per editor and figure: `editor`, `figure`, `mean`, `low`, `high` in percent, `n` records."""
        import pandas

        return pandas.DataFrame(
            [
                {"editor": name, "figure": figure, **vars(estimate)}
                for name, row in self.rows.items()
                for figure, estimate in row.items()
            ]
        )

    @property
    def markdown(self) -> str:
        """The table, the differences to the unedited model, and what the figures are."""
        parts = [self.grid().markdown]
        if len(self.rows) > 1 and UNEDITED in self.rows:
            parts.append(self.grid(UNEDITED).markdown)
        return "\n".join([*parts, *(f"- `{name}`: {meaning}" for name, meaning in ZSRE_COLUMNS.items()), ""])

    def save(self, folder: str | Path) -> list[Path]:
        """Write zsre.json and zsre.md.

        Raises:
            StorageError: If a file cannot be written.
        """
        rows = {name: {key: each.to_dict() for key, each in row.items()} for name, row in self.rows.items()}
        data = {"confidence": self.confidence, "rows": rows, "failures": {k: dict(v) for k, v in self.failures.items()}}
        text = json.dumps(data, indent=1, allow_nan=False)
        return [
            write_whole(Path(folder) / "zsre.json", text.encode()),
            write_whole(Path(folder) / "zsre.md", self.markdown.encode()),
        ]


def _with_score(means: Float[Tensor, "*draws side figure"]) -> Float[Tensor, "*draws side figures"]:
    """Put the harmonic mean first; it is 0 where a figure is."""
    score = means.shape[-1] / (1 / means).sum(dim=-1, keepdim=True)
    return torch.cat([score, means], dim=-1)
