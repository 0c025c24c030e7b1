"""A folder of results that an evaluation fills record by record, and continues to fill after an interruption.

    unedited.jsonl                  measurements of the unedited model, made once for all editors
    states/<case_id>.safetensors    its next-token states, with which edited models are compared
    editors/<name>-<hash>.jsonl     one file per editor and settings

Every file begins with the settings that its lines were made with (model, data set, what is measured, seed; the editor's
own), and is refused where they differ. Of several lines of one record, such as a failure and what a later try gave, the
last one holds.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_rome.counterfact.evaluation.measure import States
from tl_rome.counterfact.results import UNEDITED, CaseResult
from tl_rome.errors import StorageError
from tl_rome.storage.files import load, save
from tl_rome.storage.ledger import Ledger, check_settings, open_ledger, read_ledger

_BEFORE, _AFTER, _STATES = "measurements before edits", "measurements after edits", "next-token states"
_FIELDS = {"case_id": int}
"""What every line has; the others make a `CaseResult`."""


@dataclass(frozen=True)
class RunStore:
    """Results of one model, data set and kind of measurement, under any number of editors.

    `load_results` reads one without a model.
    """

    folder: Path
    """Where they are."""
    settings: Mapping[str, Any]
    """JSON-serialisable, with `model` and `dataset`; files made with others are refused."""

    def open_unedited(self) -> AbstractContextManager[Ledger]:
        """The file of the unedited model; see `open_ledger` for errors."""
        return open_ledger(self.folder / "unedited.jsonl", _BEFORE, self.settings, _FIELDS)

    def open_editor(self, name: str, config: str, described: Any) -> AbstractContextManager[Ledger]:
        """The file of one editor; see `open_ledger` for errors.

        Args:
            name: For tables.
            config: Hash of its settings.
            described: The settings themselves.
        """
        settings = {**self.settings, "editor": name, "config": config, "editor_settings": described}
        return open_ledger(editor_file(self.folder, name, config), _AFTER, settings, _FIELDS)

    def put_states(self, case_id: int, states: States) -> None:
        """Keep the unedited model's states of a record.

        Raises:
            StorageError: If they cannot be written.
        """
        save(self._states_file(case_id), _STATES, states, {"case_id": case_id, "settings": dict(self.settings)})

    def states(self, case_id: int) -> States:
        """The unedited model's states of a record.

        Raises:
            StorageError: If they are absent, damaged, or of another record or store.
        """
        path = self._states_file(case_id)
        states, header = load(path, _STATES, warn=False)
        settings = header.get("settings", self.settings)  # older files do not name them
        if header.get("case_id") != case_id or not isinstance(settings, Mapping):
            raise StorageError(f"{path} holds states of record {header.get('case_id')!r}; delete the store")
        check_settings(path, settings, self.settings)
        return states

    def unedited(self) -> dict[int, CaseResult]:
        """Results of the unedited model by record; without `after`.

        Raises:
            StorageError: If the file is absent or damaged.
        """
        return _unedited(self.folder)

    def results(self, editors: Iterable[tuple[str, str]]) -> list[CaseResult]:
        """Results of editors, given by name and hash; those of the unedited model if there are no editors.

        Raises:
            StorageError: If a file is absent or damaged.
        """
        return _results(self.folder, [editor_file(self.folder, *editor) for editor in editors])

    def _states_file(self, case_id: int) -> Path:
        return self.folder / "states" / f"{case_id}.safetensors"


def editor_file(folder: Path, name: str, config: str) -> Path:
    """Where a store keeps the lines of one editor.

    Args:
        folder: Of the store.
        name: For tables.
        config: Hash of the editor's settings.
    """
    return folder / "editors" / f"{re.sub(r'[^A-Za-z0-9._+-]+', '_', name)}-{config}.jsonl"


def load_results(store: str | Path) -> list[CaseResult]:
    """All results of a store: of every editor, or of the unedited model if there is none; no model is needed.

    Raises:
        StorageError: If the folder is not a store, or a file is damaged.
    """
    return _results(Path(store), sorted(Path(store).glob("editors/*.jsonl")))


def unedited_line(result: CaseResult) -> dict[str, Any]:
    """What the file of the unedited model keeps of a result."""
    return {
        name: value for name, value in result.to_dict().items() if name in ("case_id", "rewrite", "before", "error")
    }


def editor_line(result: CaseResult) -> dict[str, Any]:
    """What an editor's file keeps of a result."""
    kept = ("case_id", "after", "divergence", "seconds", "verdict", "error")
    return {name: value for name, value in result.to_dict().items() if name in kept}


def _unedited(folder: Path) -> dict[int, CaseResult]:
    file = folder / "unedited.jsonl"
    header, *lines = read_ledger(file, _BEFORE, _FIELDS)
    known = {**_origin(header), "editor": UNEDITED, "config": "", "after": None, "divergence": {}, "seconds": 0.0}
    return {line["case_id"]: _case(file, number, {**known, **line}) for number, line in enumerate(lines, 2)}


def _results(folder: Path, files: Sequence[Path]) -> list[CaseResult]:
    before = _unedited(folder)
    if not files:
        return [replace(found, after=found.before) for found in before.values()]
    settings = read_ledger(folder / "unedited.jsonl")[0]["settings"]
    results = []
    for file in files:
        header, *lines = read_ledger(file, _AFTER, _FIELDS)
        check_settings(file, {name: header["settings"].get(name) for name in settings}, settings)
        known = {**_origin(header), **{name: header["settings"].get(name) for name in ("editor", "config")}}
        cases: dict[int, CaseResult] = {}
        for number, line in enumerate(lines, 2):
            if (unedited := before.get(line["case_id"])) is None:
                raise StorageError(
                    f"line {number} of {file} is of record {line['case_id']}, which unedited.jsonl beside it lacks; "
                    "run the evaluation again to measure it"
                )
            found = _case(file, number, {**known, **line, "rewrite": unedited.rewrite, "before": unedited.before})
            cases[found.case_id] = found
        results += cases.values()
    return results


def _case(file: Path, number: int, data: Mapping[str, Any]) -> CaseResult:
    try:
        return CaseResult.from_dict(data)
    except StorageError as error:
        raise StorageError(f"line {number} of {file}: {error}") from error


def _origin(header: Mapping[str, Any]) -> dict[str, Any]:
    settings = header["settings"]
    others = {name: value for name, value in settings.items() if name not in ("model", "dataset", "editor", "config")}
    return {**{name: settings.get(name) for name in ("model", "dataset")}, "settings": others}
