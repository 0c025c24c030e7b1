"""Names of data sets by the fields of their records, so that a file of another one is called what it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """A known form of records."""

    name: str
    """What has this form."""
    fields: tuple[str, ...]
    """Those that show it."""
    remedy: str | None = None
    """How to read it with this package, where that is possible."""


_PARAREL = "give ParaRel's folder to load_pararel or load_facts"
LAYOUTS = (
    Layout("COUNTERFACT", ("requested_rewrite", "neighborhood_prompts"), "read it with load_counterfact"),
    Layout("COUNTERFACT's flat table", ("relation_prefix", "target_false"), "read it with load_counterfact"),
    Layout("known facts", ("prompt", "subject", "attribute"), "read it with load_facts"),
    Layout("facts", ("template", "subject"), "name it .jsonl and read it with load_facts"),
    Layout("reference texts", ("relation_id", "samples"), "read it with load_references"),
    Layout("patterns of ParaRel", ("pattern",), _PARAREL),
    Layout("facts of ParaRel", ("sub_label", "obj_label"), _PARAREL),
    Layout(
        "zsRE in MEND's layout (zsre_mend_eval)",
        ("src", "rephrase", "alt", "loc"),
        "read it with tl_rome.zsre.load_zsre",
    ),
    Layout("MQuAKE", ("requested_rewrite", "questions", "new_answer"), "read it with load_mquake"),
    Layout("UnKE", ("question", "para_question", "answer")),
    Layout("RippleEdits", ("edit", "Logical_Generalization"), "read it with load_rippleedits"),
    Layout("KnowEdit", ("prompt", "target_new", "portability", "locality"), "read it with load_knowedit"),
    Layout("KnowEdit (WikiBio)", ("concept", "labels", "locality")),
    Layout("EasyEdit", ("prompt", "target_new", "rephrase_prompt")),
    Layout("EasyEdit", ("prompt", "target_new", "ground_truth")),
)
"""Where several fit, the first is meant."""


def name_layout(row: Any, wanted: str, otherwise: str) -> str | None:
    """Say of a record that cannot be read which other data set it is of; None where that is not known.

    Args:
        row: What a file holds, such as its first record.
        wanted: Name of the layout that was expected.
        otherwise: Remedy for data sets that this package does not read.
    """
    if not isinstance(row, Mapping):
        return None
    for layout in LAYOUTS:
        if all(field in row for field in layout.fields):
            if layout.name == wanted:
                return None
            shown = ", ".join(layout.fields)
            return f"is a record of {layout.name} (it has {shown}), not of {wanted}; {layout.remedy or otherwise}"
    return None
