"""What files of ours are, by their headers alone: their model and layers, for a repository's card and for a search."""

from collections.abc import Mapping
from typing import Any

from tl_rome.editors.export.card import front_matter
from tl_rome.storage.repository import Repository

EDITS = ("edit", "batch_edit", "edit_sequence")
"""Kinds of files that hold edits."""
NAMES = {"key_covariance": "key statistics", "key_memory": "key memory", "mend": "MEND", "ke": "KE"}
"""Kinds of the other files that are shared, in words."""
_CLASSES = {"key_covariance": "KeyCovariance", "key_memory": "KeyMemory", "mend": "Mend", "ke": "Ke"}


def belongs_to(header: Mapping[str, Any]) -> str:
    """Fingerprint of the model that a file is for."""
    return str(header["model"] if "model" in header else header["edits"][0]["model"])


def layers_of(header: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers that a file is about, lowest first."""
    if "layer" in header:
        return (int(header["layer"]),)
    if "edits" in header:
        return tuple(sorted({layer for edit in header["edits"] for layer in layers_of(edit)}))
    if "sizes" in header:
        return tuple(sorted(map(int, header["sizes"])))
    places = header.get("matrices", ())
    return tuple(sorted({int(place.split(".")[0] if isinstance(place, str) else place[0]) for place in places}))


def describe(header: Mapping[str, Any]) -> str:
    """One line: what it is, and what it was made from."""
    kind = str(header["kind"])
    told = NAMES.get(kind, kind)
    if "count" in header:
        told += f" from {header['count']} tokens of {header['source']}"
    if "facts" in header:
        told += f" of {header['facts']} facts"
    if isinstance(log := header.get("log"), Mapping):
        told += f" after {log.get('steps')} steps"
    return told


def catalogue_card(there: Repository, headers: Mapping[str, Mapping[str, Any]]) -> str:
    """The card of a repository of key statistics, key memories and trained editors.

    Args:
        there: Where it is.
        headers: Of every file that it then has.
    """
    lines = [front_matter({"library_name": "tl_rome", "tags": ["tl_rome", "model-editing"]}), f"# {there.name}", ""]
    lines += [
        "What editing a model needs, made with tl_rome. A file is for the model with its fingerprint.",
        "",
    ]
    lines += ["| file | holds | layers | model | texts begin with BOS |", "|---|---|---|---|---|"]
    for name, header in sorted(headers.items()):
        layers = ", ".join(map(str, layers_of(header)))
        bos = header.get("prepend_bos", "-")
        about = describe(header).replace("|", r"\|").replace("\n", " ").replace("<", "&lt;")
        lines.append(f"| `{name}` | {about} | {layers} | `{belongs_to(header)}` | {bos} |")
    name = _CLASSES.get(str(next(iter(headers.values()))["kind"]), "KeyCovariance")
    lines += ["", "```python", f"from tl_rome.editors import {name}, find_on_hub", ""]
    given = ", model" if name in ("Mend", "Ke") else ""
    lines += [f'location = find_on_hub("{there.name}", model, {name})', f"found = {name}.load(location{given})", "```"]
    return "\n".join([*lines, ""])
