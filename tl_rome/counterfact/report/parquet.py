"""Results as a table: one row per record and editor, with every figure of table 4 and the raw scores and texts.

A figure of the edited model has its column's name, such as "ES", the unedited model's has "unedited ES". What was not
measured is null. `before`, `after` and `divergence` are nested, as in `CaseResult`; the records' own groups are a list
there, and have columns where there are any.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_rome.counterfact.dataset.references import ReferenceTexts
from tl_rome.counterfact.metrics.columns import COLUMNS, SCORE, RecordMetrics, group_columns
from tl_rome.counterfact.metrics.texts import word_tokenizer
from tl_rome.counterfact.results import UNEDITED, CaseResult, Conventions
from tl_rome.storage.writing import write_whole

if TYPE_CHECKING:
    from datasets import Dataset, Features

_FIGURES = tuple(name for name in COLUMNS if name != SCORE)
_TEXTS = ("editor", "config", "model", "dataset", "relation_id", "prompt", "subject", "target_new", "target_true")
_GROUPS = ("rewrite", "paraphrase", "neighborhood", "neighborhood_plus", "attribute")


def to_dataset(
    results: Iterable[CaseResult], *, references: ReferenceTexts | None = None, conventions: Conventions = "released"
) -> "Dataset":
    """A `datasets` data set of results; `.to_pandas()` makes a data frame of it.

    Args:
        results: Of any editors, models and data sets.
        references: Texts for RS; without them it is null.
        conventions: Whose conventions the figures follow.
    """
    from datasets import Dataset

    metrics, known = RecordMetrics(word_tokenizer(), references, conventions), {}
    rows = [_row(result, metrics, known) for result in results]
    named = group_columns([name.removeprefix(f"{UNEDITED} ") for name in row["figures"]] for row in rows)
    features = _features(named)
    rows = [{**row, **{name: row["figures"].get(name) for name in features if name not in row}} for row in rows]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def write_parquet(
    results: Iterable[CaseResult],
    path: str | Path,
    *,
    references: ReferenceTexts | None = None,
    conventions: Conventions = "released",
) -> Path:
    """Write the table of `to_dataset` as one Parquet file.

    Raises:
        StorageError: If it cannot be written.
    """
    buffer = io.BytesIO()
    to_dataset(results, references=references, conventions=conventions).to_parquet(buffer)
    return write_whole(Path(path), buffer.getvalue())


def _row(
    result: CaseResult, metrics: RecordMetrics, known: dict[tuple[str, str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """One row; the unedited model's figures are kept for the other editors."""
    plain, origin = result.to_dict(), (result.model, result.dataset, result.case_id)
    if result.before is not None and origin not in known:
        known[origin] = _figures(metrics.compute(result.before, result.rewrite))
    before = known[origin] if result.before is not None else {}
    after = {}
    if result.after is not None:
        told = result.divergence, result.verdict, result.seconds
        after = _figures(metrics.compute(result.after, result.rewrite, *told))
    rewrite = plain.pop("rewrite")
    targets = {name: rewrite.pop(name)["str"] for name in ("target_new", "target_true")}
    for measured in (plain["before"], plain["after"]):
        if measured is not None:
            measured["groups"] = [{"group": name, **scores} for name, scores in measured["groups"].items()]
    figures = {**after, **{f"{UNEDITED} {name}": figure for name, figure in before.items()}}
    return {**plain, **rewrite, **targets, "figures": figures}


def _figures(read: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(figure) else figure for name, figure in read.items()}


def _features(named: Sequence[str]) -> "Features":
    """Types of the columns, so that files of different runs can be joined whatever was measured in them."""
    from datasets import Features, Value

    text, number, count, flag = Value("string"), Value("float64"), Value("int64"), Value("bool")
    scores = {
        **{f"logprob_{target}": [number] for target in ("new", "true")},
        **{f"tokens_{target}": [count] for target in ("new", "true")},
        **{f"argmax_{target}": [flag] for target in ("new", "true")},
    }
    texts = [{"prompt": text, "continuation": text}]
    columns = (*_FIGURES, *named)
    answers = {"group": text, "logprob": [[number]], "tokens": [[count]], "argmax": [[flag]]}
    measured = {
        **{group: scores for group in _GROUPS},
        **{name: texts for name in ("generations", "free_rewrite", "free_paraphrase")},
        "essence_nll": number,
        "groups": [answers],
    }
    return Features(
        {
            "case_id": count,
            **{name: text for name in _TEXTS},
            "seconds": number,
            "verdict": text,
            "error": text,
            **{name: number for name in (*columns, *(f"{UNEDITED} {name}" for name in columns))},
            "before": measured,
            "after": measured,
            "divergence": {"neighborhood": [number], "neighborhood_plus": [number], "essence": number},
        }
    )
