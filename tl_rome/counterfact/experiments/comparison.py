"""Table 3 of the document: editors beside the unedited model on the same records, every column with its interval.

One call runs or resumes everything; `Table3.save` leaves the table as JSON, Markdown, PNG and one HTML page.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_rome.counterfact.dataset.references import ReferenceTexts
from tl_rome.counterfact.evaluation.evaluate import evaluate
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.counterfact.metrics.columns import COLUMNS, PAPER_COLUMNS
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.page import write_report
from tl_rome.counterfact.report.plot import plot_summary
from tl_rome.counterfact.report.summary import Estimate, Summary, summarize
from tl_rome.counterfact.results import UNEDITED, CaseResult, Preset
from tl_rome.editors.protocol import Editor
from tl_rome.figures import png
from tl_rome.sites import HookedModel
from tl_rome.storage.files import write_whole


@dataclass(frozen=True)
class Table3:
    """A finished run; `print(table.markdown)`."""

    records: tuple[CounterFactRecord, ...]
    """What was evaluated."""
    results: tuple[CaseResult, ...]
    """One per editor and record."""
    summary: Summary
    """Means with intervals."""
    references: ReferenceTexts | None
    """Texts for RS."""

    @classmethod
    def of(
        cls,
        records: Iterable[CounterFactRecord],
        results: Iterable[CaseResult],
        references: ReferenceTexts | None = None,
        *,
        preset: Preset = "released",
        seed: int = 0,
    ) -> "Table3":
        """The table of an evaluation, wherever it was run.

        Args:
            records: What was evaluated.
            results: One per editor and record.
            references: Texts for RS.
            preset: Whose conventions the figures follow.
            seed: Of the bootstrap.

        Raises:
            InputError: See `summarize`.
        """
        results = tuple(results)
        summary = summarize(results, references=references, preset=preset, seed=seed)
        return cls(tuple(records), results, summary, references)

    @property
    def columns(self) -> tuple[str, ...]:
        """The source's columns and those beside them, as far as something was measured."""
        rows = self.summary.rows.values()
        paper = PAPER_COLUMNS[self.summary.preset]
        measured = [name for name in COLUMNS if any(row[name].n for row in rows)]
        return (*(name for name in paper if name in measured), *(name for name in measured if name not in paper))

    @property
    def markdown(self) -> str:
        """The table and the differences to the unedited model."""
        parts = [self.summary.grid(self.columns).markdown]
        if len(self.summary.rows) > 1:
            parts.append(self.summary.differences(columns=self.columns).markdown)
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: estimates by row and column, also of the differences."""
        summary = self.summary
        others = [name for name in summary.rows if name != UNEDITED]
        return {
            "preset": summary.preset,
            "records": len(self.records),
            "confidence": summary.confidence,
            "rows": {name: _plain(row) for name, row in summary.rows.items()},
            "differences": {name: _plain(summary.difference(name)) for name in others},
            "failures": {name: dict(failed) for name, failed in summary.failures.items() if failed},
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write table3.json, table3.md, table3.png and report.html.

        Args:
            folder: Made if needed; files of these names are replaced.

        Raises:
            StorageError: If a file cannot be written.
        """
        from matplotlib.figure import Figure

        folder = Path(folder)
        figure = Figure(figsize=(7, 3), dpi=150, layout="constrained")
        plot_summary(self.summary, ax=figure.subplots())
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        report = folder / "report.html"
        files = [
            write_whole(folder / "table3.json", text.encode()),
            write_whole(folder / "table3.md", self.markdown.encode()),
            write_whole(folder / "table3.png", png(figure)),
        ]
        write_report(report, self.results, records=self.records, summary=self.summary, title="Table 3")
        return [*files, report]


def table3(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editors: Mapping[str, Editor],
    *,
    references: ReferenceTexts | None = None,
    store: str | Path | None = None,
    config: EvaluationConfig | None = None,
    preset: Preset = "released",
    together: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Table3:
    """Evaluate editors on records and tabulate every metric.

    Args:
        model: Unedited; left as found.
        records: Each case_id once.
        editors: By name, as `editors_by_name` gives them.
        references: Texts for RS, such as `load_references()`; without them it is not measured.
        store: Folder of results, to go on with an interrupted run.
        config: What is measured.
        preset: Whose conventions the figures follow.
        together: Records edited and measured at once.
        seed: Of the generated texts and of the bootstrap.
        progress: Whether to show progress bars.

    Raises:
        TLRomeError: As `evaluate` and `summarize` do.
    """
    chosen = tuple(records)
    results = evaluate(
        model, chosen, editors, store=store, config=config, together=together, seed=seed, progress=progress
    )
    return Table3.of(chosen, results, references, preset=preset, seed=seed)


def _plain(row: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: {"n": each.n, **_finite(each, ("mean", "low", "high"))} for name, each in row.items()}


def _finite(estimate: Estimate, names: Sequence[str]) -> dict[str, float | None]:
    found = {name: getattr(estimate, name) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
