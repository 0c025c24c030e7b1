"""What a page says of its run under the heading: model, records, date, seed, and each editor's settings in words."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from tl_rome.counterfact.report.tables import row_labels
from tl_rome.counterfact.results import UNEDITED, CaseResult

_LISTED = 4
"""A longer list is named by its length."""


def describe_run(results: Sequence[CaseResult]) -> dict[str, str]:
    """Name and wording of what is known of a run; seed and settings are known of results that come from a store."""
    first = results[0]
    measured = len({result.case_id for result in results})
    of_all = f" of {first.settings['records']}" if "records" in first.settings else ""
    about = {
        "Model": f"fingerprint {first.model}",
        "Records": f"{measured}{of_all}, data set {first.dataset}",
        "Date": f"page written on {date.today().isoformat()}",
    }
    if "seed" in first.settings:
        about["Seed"] = str(first.settings["seed"])
    labels = row_labels(results)
    settings = {labels[result.editor, result.config]: result.settings.get("editor_settings") for result in results}
    return {**about, **{name: in_words(made) for name, made in settings.items() if made and name != UNEDITED}}


def in_words(value: Any) -> str:
    """Settings as `describe_editor` gives them, in one line; digests and what is not set are left out."""
    if isinstance(value, Mapping):
        named = {name: in_words(each) for name, each in value.items() if name != "digest" and each not in (None, "")}
        return ", ".join(f"{name.replace('_', ' ')} {words}" for name, words in named.items() if words)
    if isinstance(value, list | tuple):
        return f"({len(value)})" if len(value) > _LISTED else ", ".join(map(in_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
