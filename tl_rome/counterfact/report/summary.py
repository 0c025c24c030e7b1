"""From results to a summary, and the files that a comparison of editors leaves."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tl_rome.arguments import Count, Seed, Share
from tl_rome.counterfact.dataset.references import ReferenceTexts
from tl_rome.counterfact.metrics.columns import RecordMetrics
from tl_rome.counterfact.metrics.free import Judge
from tl_rome.counterfact.metrics.texts import word_tokenizer
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.page import write_report
from tl_rome.counterfact.report.plot import summary_figure
from tl_rome.counterfact.report.tables import SummaryTables, row_labels
from tl_rome.counterfact.results import UNEDITED, CaseResult, Conventions
from tl_rome.errors import InputError
from tl_rome.figures import png
from tl_rome.storage.writing import write_whole


@dataclass(frozen=True)
class Summary(SummaryTables):
    """The tables of a run, which can be written to files."""

    def save(
        self,
        folder: str | Path,
        results: Iterable[CaseResult],
        records: Iterable[CounterFactRecord] | None = None,
        *,
        title: str = "Comparison of editors",
        about: Mapping[str, str] | None = None,
    ) -> list[Path]:
        """Write compare.json, compare.md, compare.png and report.html.

        Args:
            folder: Made if needed; files of these names are replaced.
            results: Those that were summarised, for the records on the page.
            records: What was evaluated, for the text of prompts.
            title: Heading of the page.
            about: See `write_report`.

        Raises:
            StorageError: If a file cannot be written.
            InputError: See `write_report`.
        """
        folder = Path(folder)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        return [
            write_whole(folder / "compare.json", text.encode()),
            write_whole(folder / "compare.md", self.markdown.encode()),
            write_whole(folder / "compare.png", png(summary_figure(self))),
            write_report(folder / "report.html", results, self, records=records, title=title, about=about),
        ]


def summarize(
    results: Iterable[CaseResult],
    *,
    references: ReferenceTexts | None = None,
    judge: Judge | None = None,
    conventions: Conventions = "released",
    confidence: Share = 0.95,
    resamples: Count = 2000,
    seed: Seed = 0,
) -> Summary:
    """Metrics of every record, and their means with intervals, for the unedited model and every editor.

    Args:
        results: Of one model and one data set; any number of editors.
        references: Texts for RS, see `load_references`; without them RS is not measured.
        judge: Of what the model says by itself (`EvaluationConfig.free`), called as `judge(prompt, answer, target)`;
            returns True, False or a number from 0 to 1. Without one there are no judge columns.
        conventions: Whose conventions to follow.
        confidence: Of the intervals.
        resamples: How often to redraw the records.
        seed: Of the draws.

    Raises:
        InputError: If there are no results, those of several models or data sets, or two of one record and editor, or
            if the judge returns anything else.
    """
    results = list(results)
    origins = {(result.model, result.dataset) for result in results}
    if len(origins) != 1:
        raise InputError(
            f"these {len(results)} results are of {len(origins)} pairs of model and data set; give one pair's"
        )
    metrics, labels = RecordMetrics(word_tokenizer(), references, conventions, judge), row_labels(results)
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
            figures[UNEDITED][case] = metrics.compute(result.before, result.rewrite)
        if result.after is None:
            failed[case] = result.error or "no reason was recorded"
        else:
            told = result.divergence, result.verdict, result.seconds
            rows[case] = metrics.compute(result.after, result.rewrite, *told)
    measured = {name: rows for name, rows in figures.items() if rows}
    return Summary(conventions, measured, failures, confidence, resamples, seed)
