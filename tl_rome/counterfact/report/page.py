"""A run as one HTML page that needs no network: the tables, pictures, failures, and every record to look through.

Records can be filtered by text, editor and outcome. Everything that came from records or models is escaped, and the
page forbids itself to load anything.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from tl_rome.counterfact.metrics.columns import meaning
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.page_about import describe_run
from tl_rome.counterfact.report.page_case import OUTCOMES, case_view
from tl_rome.counterfact.report.plot import summary_figure
from tl_rome.counterfact.report.tables import SummaryTables, row_labels
from tl_rome.counterfact.results import UNEDITED, CaseResult
from tl_rome.errors import InputError, require
from tl_rome.figures import png
from tl_rome.storage.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "report.html"
"""The page, in `tl_rome/data`."""


def write_report(
    path: str | Path,
    results: Iterable[CaseResult],
    summary: SummaryTables,
    *,
    records: Iterable[CounterFactRecord] | None = None,
    title: str = "COUNTERFACT",
    figures: "Mapping[str, bytes | Figure] | None" = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write the page of a run, about 30 kB a record with four editors and ten texts each.

    Args:
        path: An existing file is replaced.
        results: As `evaluate` or `load_results` gives them.
        summary: What `summarize` made of these results.
        records: What was evaluated, for the text of prompts; those without results are left out.
        title: Heading.
        figures: More pictures by caption, as PNG or Matplotlib figures.
        about: What else to say of the run under the heading, such as `{"Model": "gpt2-xl"}`; what results of a store
            know of it is said without this.

    Raises:
        InputError: If there are no results, or the records are not those that were evaluated.
        MissingPackageError: If jinja2 is not installed.
        StorageError: If the file cannot be written.
    """
    results = list(results)
    if not results:
        raise InputError("there are no results to report; evaluate some records first")
    labels, cases = row_labels(results), {}
    for result in results:
        cases.setdefault(result.case_id, {})[labels[result.editor, result.config]] = result
    editors = [name for name in dict.fromkeys(labels.values()) if name != UNEDITED] or [UNEDITED]
    known = {record.case_id: record for record in records or ()}
    page = _page(
        title=title,
        about={**describe_run(results), **(about or {})},
        grids=_grids(summary),
        columns={name: meaning(name) for name in summary.known_columns},
        figures=_images(summary, figures or {}),
        failures=[(name, case, why) for name, failed in summary.failures.items() for case, why in failed.items()],
        reading=_reading(summary),
        editors=editors,
        outcomes=OUTCOMES,
        cases=[case_view(found, editors, known.get(number), summary.conventions) for number, found in cases.items()],
    )
    return write_whole(Path(path), page.encode("utf-8", "backslashreplace"))  # half characters


def _page(**parts: object) -> str:
    require("jinja2", extra="report")
    from jinja2 import Environment, StrictUndefined

    text = resources.files("tl_rome.data").joinpath(_TEMPLATE).read_text("utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text).render(parts)


def _grids(summary: SummaryTables) -> Sequence[object]:
    """The table, and the differences to the unedited model where there is an edited one."""
    measured = [name for name in summary.known_columns if any(row[name].n for row in summary.rows.values())]
    both = UNEDITED in summary.rows and len(summary.rows) > 1
    return [summary.grid(measured), *([summary.differences(columns=measured)] if both else [])]


def _images(summary: SummaryTables, figures: "Mapping[str, bytes | Figure]") -> dict[str, str]:
    """Pictures in base64 by caption, the summary's first."""
    images: dict[str, bytes | Figure] = {}
    if summary.rows:
        images["Efficacy, paraphrases, neighbours and their harmonic mean"] = summary_figure(summary)
    return {caption: base64.b64encode(_png(image)).decode() for caption, image in {**images, **figures}.items()}


def _png(image: "bytes | Figure") -> bytes:
    return image if isinstance(image, bytes) else png(image)


def _reading(summary: SummaryTables) -> str:
    """How the probabilities of records are to be read."""
    what = "of whole targets" if summary.conventions == "draft" else "geometric means over the tokens of a target"
    return f"Probabilities are {what}, as the tables take them ({summary.conventions} conventions)."
