"""A folder of traces that many runs, one after another or at once, fill together.

`settings.json` says how its traces are made. Each prompt and component has one safetensors file, which appears whole or
not at all; a fact that could not be traced has a JSON file with the reason. A prompt is claimed by a file lock, which
the system frees when its holder dies. A trace's file names its fact and the settings of its store, so that one that
strayed here from another fact, component or store is left out, with a logged warning, and traced anew.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tl_rome.errors import StorageError
from tl_rome.facts import Fact
from tl_rome.patching.result import TRACE_KIND, TraceResult
from tl_rome.storage.files import SCHEMA_VERSION, UNCHECKED, check_kind, digest, load, save, warn_unchecked
from tl_rome.storage.json_text import seal, unseal
from tl_rome.storage.ledger import check_settings
from tl_rome.storage.parts import read_as, reading
from tl_rome.storage.writing import regular, write_whole

RESERVED = ("settings.json", "failed", "locks")
"""Names in a store's folder that are its own."""
_KIND = "traces"
_log = logging.getLogger(__name__)


class TraceStore:
    """Traces of many facts, all made with the same settings.

    Args:
        folder: Where they are.

    Raises:
        StorageError: If the folder is not a store; `begin` makes one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "settings.json").exists():
            raise StorageError(f"{folder} is not a store of traces: it has no settings.json; name another folder")
        header = _read_sealed(self.folder / "settings.json", "the settings of a store of traces")
        check_kind(self.folder, header, _KIND)
        with reading(self.folder / "settings.json", "the settings of a store of traces"):
            self.settings: dict[str, Any] = read_as(dict[str, Any], header["settings"], "settings")
        if header["schema"] == UNCHECKED:
            warn_unchecked(self.folder)
        self._settings_digest = digest([self.settings])
        self._own: set[Path] = set()
        """Files that are known to be what their names say."""

    @classmethod
    def begin(cls, folder: str | Path, settings: Mapping[str, Any]) -> "TraceStore":
        """Open a store for these settings, made if needed.

        Raises:
            ModelMismatchError: If it belongs to another model.
            StorageError: If it was made with other settings, or cannot be written.
        """
        folder = Path(folder)
        if not (folder / "settings.json").exists():
            with _locked(folder, "settings", wait=True):
                if not (folder / "settings.json").exists():  # not begun by another process meanwhile
                    _write_sealed(
                        folder / "settings.json", {"kind": _KIND, "schema": SCHEMA_VERSION, "settings": settings}
                    )
        store = cls(folder)
        check_settings(folder, store.settings, settings)
        return store

    def claim(self, fact: Fact, *, wait: bool) -> Any:
        """Context manager that holds a fact's lock; it gives False if another has it and we are not to wait."""
        return _locked(self.folder, fact_id(fact), wait=wait)

    def missing(self, fact: Fact, components: Sequence[str]) -> list[str]:
        """The components that are still to be traced.

        Raises:
            StorageError: If a file is damaged.
        """
        return [component for component in components if not self._has(self._path(fact, component), fact)]

    def put(self, fact: Fact, result: TraceResult) -> None:
        """Keep a trace; an earlier failure of the fact is forgotten."""
        path = self._path(fact, result.component)
        tensors, header = result.to_file()
        save(path, TRACE_KIND, tensors, {**header, "store": {"fact": path.stem, "settings": self._settings_digest}})
        self._own.add(path)
        self._failure(fact).unlink(missing_ok=True)

    def get(self, fact: Fact, component: str) -> TraceResult | None:
        """The trace of a fact, if there is one.

        Raises:
            StorageError: If its file is damaged.
        """
        path = self._path(fact, component)
        return self._read(path, fact) if path.exists() else None

    def put_failure(self, fact: Fact, error: Exception) -> None:
        """Keep the reason why a fact could not be traced."""
        reason = f"{type(error).__name__}: {error}"
        record = {"schema": SCHEMA_VERSION, "fact": asdict(fact), "error": reason}
        _write_sealed(self._failure(fact), record)

    def failures(self) -> list[tuple[Fact, str]]:
        """Facts that could not be traced, each with the error's text.

        Raises:
            StorageError: If a file is damaged.
        """
        found = []
        for path in sorted(self.folder.glob("failed/*.json")):
            record = _read_sealed(path, what := "a fact that could not be traced")
            with reading(path, what):
                found.append((read_as(Fact, record["fact"], "fact"), read_as(str, record["error"], "error")))
        return found

    def traces(self) -> dict[str, list[TraceResult]]:
        """All traces by component, in an order that does not depend on when they were made.

        Raises:
            StorageError: If a file is damaged.
        """
        found: dict[str, list[TraceResult]] = {}
        for path in sorted(self.folder.glob("*/*.safetensors")):
            if (result := self._read(path)) is not None:
                found.setdefault(path.parent.name, []).append(result)
        return found

    def _has(self, path: Path, fact: Fact) -> bool:
        if path not in self._own and path.exists() and self._read(path, fact) is not None:
            self._own.add(path)
        return path in self._own

    def _read(self, path: Path, fact: Fact | None = None) -> TraceResult | None:
        """The trace in a file; None, with a warning, if the file is not what its place says."""
        tensors, header = load(path, TRACE_KIND, warn=False)
        result = TraceResult.from_file(tensors, header, path)
        own = {"fact": path.stem, "settings": self._settings_digest}
        named = header.get("store") == own or header["schema"] == UNCHECKED  # older files do not name their store
        right = (result.component, result.model) == (path.parent.name, self.settings.get("model", result.model))
        if named and right and (fact is None or result.prompt == fact.prompt):
            return result
        _log.warning("%s holds the trace of %r, which does not belong there; it is left out", path, result.prompt)
        return None

    def _path(self, fact: Fact, component: str) -> Path:
        return self.folder / component / f"{fact_id(fact)}.safetensors"

    def _failure(self, fact: Fact) -> Path:
        return self.folder / "failed" / f"{fact_id(fact)}.json"


def load_traces(folder: str | Path) -> dict[str, list[TraceResult]]:
    """All traces of a store by component; no model is needed.

    Raises:
        StorageError: If the folder is not a store, or a file is damaged.
    """
    return TraceStore(folder).traces()


def fact_id(fact: Fact) -> str:
    """Name of a fact's files: 16 hexadecimal digits of its template, subject, target, and of a joiner of its own."""
    return digest([fact.template, fact.subject, fact.target, *([] if fact.joiner is None else [fact.joiner])])


@contextmanager
def _locked(folder: Path, name: str, *, wait: bool) -> Iterator[bool]:
    try:
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "locks" / f"{name}.lock", timeout=-1 if wait else 0)
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error}") from error
    try:
        yield True
    finally:
        lock.release()


def _write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    try:
        text = seal(record)
    except ValueError as error:
        raise StorageError(f"cannot write {path}: {record!r} has no form in JSON ({error})") from error
    write_whole(path, f"{text}\n".encode())


def _read_sealed(path: Path, what: str) -> dict[str, Any]:
    """The record of a file of one sealed line; older ones are unsealed, and may have several lines."""
    try:
        text = regular(path).read_text("utf-8")
        record, checksum = unseal(text.removesuffix("\n"))
        if checksum is None and record.get("schema", UNCHECKED) != UNCHECKED:
            raise ValueError("it has no checksum")
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} does not hold {what} ({error}); make it again, or name another folder") from error
    return record
