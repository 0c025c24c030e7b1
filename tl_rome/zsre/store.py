"""Scores of zsRE records on disk, batch by batch: a folder with one JSONL file for each row of the table.

    unedited.jsonl                  scores of the unedited model
    editors/<name>-<hash>.jsonl     one file per editor and settings

Every file begins with the settings that its lines were made with (model and records; the editor's own), and is refused
where they differ. Of several lines of one record, such as a failure and what a later try gave, the last one holds.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tl_rome.counterfact.evaluation.store import editor_file
from tl_rome.counterfact.results import UNEDITED
from tl_rome.editors.identity import settings_hash
from tl_rome.storage.ledger import Ledger, open_ledger
from tl_rome.storage.parts import read_as
from tl_rome.zsre.scores import ZsreScores


@dataclass(frozen=True)
class ScoredRecord:
    """One record in one row: its scores, or why there are none."""

    case_id: int
    """The record's number."""
    scores: ZsreScores | None
    """None where the edit failed."""
    error: str | None = None
    """Why it did."""


@dataclass(frozen=True)
class Row:
    """The records of one row, and the file that keeps them."""

    known: dict[int, ScoredRecord]
    """What there is, by case_id."""
    ledger: Ledger
    """The file."""

    def left(self, case_ids: Iterable[int], retry_failed: bool) -> set[int]:
        """Records that the file lacks, or has as failures that are to be tried again.

        Raises:
            StorageError: If there are some, and the file cannot be written.
        """
        left = {
            case_id
            for case_id in case_ids
            if case_id not in self.known or (retry_failed and self.known[case_id].scores is None)
        }
        if left:
            self.ledger.check_writable()
        return left

    def add(self, *scored: ScoredRecord) -> None:
        """Keep some more, together.

        Raises:
            StorageError: If they cannot be written.
        """
        self.ledger.append(*map(asdict, scored))
        self.known.update((each.case_id, each) for each in scored)


@contextmanager
def open_row(folder: Path, settings: Mapping[str, Any], name: str, described: Any = None) -> Iterator[Row]:
    """Open the file of a row, or begin it; see `open_ledger` for errors.

    Args:
        folder: Of the store.
        settings: Of all rows.
        name: The editor's, or `UNEDITED`.
        described: The editor's own settings, see `describe_editor`.
    """
    path = folder / "unedited.jsonl"
    if name != UNEDITED:
        config = settings_hash(described)
        path = editor_file(folder, name, config)
        settings = {**settings, "editor": name, "config": config, "editor_settings": described}
    fields = {"case_id": int, "scores": ZsreScores | None, "error": str | None}
    with open_ledger(path, "zsRE scores", settings, fields) as ledger:
        known = (read_as(ScoredRecord, line) for line in ledger.records)
        yield Row({each.case_id: each for each in known}, ledger)
