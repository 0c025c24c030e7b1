"""Reference texts for RS: about entities that stand in relation r to object o*.

Read from the JSON form of the released `attribute_snippets`, from a folder of one's own, or from a `datasets` data set.
An object is found by its WikiData identifier or by its name.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_rome.counterfact.dataset.load import load_rows, read_rows
from tl_rome.counterfact.records import RequestedRewrite, Target
from tl_rome.errors import InputError, RecordError, StorageError, require
from tl_rome.storage.layouts import name_layout
from tl_rome.storage.text import brief, ending, read_text

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

_REWRITE = "give texts about entities, by relation and object"
_SAMPLE_FILE = "reference_texts.json"


@dataclass(frozen=True)
class ReferenceText:
    """A text about an entity."""

    name: str
    """The entity."""
    text: str
    """What is written about it."""


@dataclass(frozen=True)
class ReferenceTexts:
    """Texts by relation and object.

    Raises:
        InputError: If there is none.
    """

    texts: Mapping[tuple[str, str], tuple[ReferenceText, ...]]
    """By relation_id, and identifier or name of the object."""

    def __post_init__(self) -> None:
        if not any(self.texts.values()):
            raise InputError("there are no reference texts; give at least one")

    def about(self, rewrite: RequestedRewrite) -> list[str]:
        """Texts about entities that share the rewrite's relation and its new object; empty if there are none."""
        target = rewrite.target_new
        keys = {key: None for key in (target.id, target.str) if key is not None}
        return [found.text for key in keys for found in self.texts.get((rewrite.relation_id, key), ())]

    @cached_property
    def vectorizer(self) -> "TfidfVectorizer":
        """tf-idf of single words, with scikit-learn's defaults, fitted to every text as in the released code."""
        require("sklearn", extra="eval")
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer().fit([found.text for texts in self.texts.values() for found in texts])

    def vector(self, rewrite: RequestedRewrite) -> "csr_matrix | None":
        """tf-idf vector of the texts about the rewrite's new object, joined; None if there are none.

        It is kept: released texts about one object can be a book long, and every editor's records ask for it.
        """
        key = rewrite.relation_id, rewrite.target_new
        if key not in self._vectors:
            texts = self.about(rewrite)
            self._vectors[key] = self.vectorizer.transform([" ".join(texts)]) if texts else None
        return self._vectors[key]

    @cached_property
    def _vectors(self) -> "dict[tuple[str, Target], csr_matrix | None]":
        return {}

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "ReferenceTexts":
        """Collect rows with relation_id, target_id (or target, its name), name and text.

        Raises:
            InputError: If a row lacks one of them, or there is no row.
        """
        collected: dict[tuple[str, str], list[ReferenceText]] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise InputError(f"reference text number {number} is {brief(row)}, not an object")
            target = row.get("target_id") or row.get("target")
            fields = {"relation_id": row.get("relation_id"), "target_id": target, "text": row.get("text")}
            missing = [name for name, value in fields.items() if not str(value or "").strip()]
            if missing:
                raise InputError(f"reference text number {number} has no {', '.join(missing)}")
            if not isinstance(row["text"], str):
                raise InputError(f"reference text number {number} is {brief(row['text'])}; a text is needed")
            found = ReferenceText(str(row.get("name") or ""), row["text"])
            collected.setdefault((str(row["relation_id"]), str(target)), []).append(found)
        return cls({key: tuple(found) for key, found in collected.items()})

    @classmethod
    def from_folder(cls, folder: Path) -> "ReferenceTexts":
        """Read `<relation_id>/<identifier or name of the object>/<entity>.txt`."""
        files = sorted(folder.glob("*/*/*.txt"))
        rows = [(file.parts[-3], file.parts[-2], file.stem, read_text(file)) for file in files]
        return cls.from_rows(dict(zip(("relation_id", "target_id", "name", "text"), row, strict=True)) for row in rows)


def load_references(source: str | Path = "sample") -> ReferenceTexts:
    """Read reference texts.

    Args:
        source: "sample" for those that ship with the package; a `.json` file like the released attribute_snippets,
            which may be gzipped; a folder of `<relation_id>/<object>/<entity>.txt`; a `.jsonl` file or the name or path
            of a `datasets` data set with the columns relation_id, target_id (or target), name and text.

    Raises:
        StorageError: If the source cannot be read.
        InputError: If it holds no text, or one that lacks a field.
    """
    if source == "sample":
        shipped = resources.files("tl_rome.data").joinpath(_SAMPLE_FILE).read_text("utf-8")
        return ReferenceTexts.from_rows(_flatten(json.loads(shipped)))
    path = Path(source)
    try:
        if ending(path) == ".json":
            return ReferenceTexts.from_rows(_flatten(read_rows(path)))
        if ending(path) == ".jsonl":
            return ReferenceTexts.from_rows(read_rows(path))
    except RecordError as error:
        raise StorageError(f"cannot read reference texts from {path}: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if path.is_dir() and any(path.glob("*/*/*.txt")):
        return ReferenceTexts.from_folder(path)
    return ReferenceTexts.from_rows(load_rows(str(source)))


def _flatten(groups: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """Rows of the released form: a list of objects with relation_id, target_id and samples of name and text."""
    for number, group in enumerate(groups):
        samples = group.get("samples") if isinstance(group, Mapping) else None
        if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
            wanted = "reference texts"
            problem = f"is {brief(group)}, not a group of {wanted}; it needs relation_id, target_id, samples"
            raise InputError(f"number {number} {name_layout(group, wanted, _REWRITE) or problem}")
        for sample in samples:
            yield {**group, "target": group.get("target"), "name": sample.get("name"), "text": sample.get("text")}
