"""A folder of traces that many runs, one after another or at once, fill together.

`settings.json` says how its traces are made. Each prompt and component has one safetensors file, which appears whole or
not at all; a fact that could not be traced has a JSON file with the reason. A prompt is claimed by a file lock, which
the system frees when its holder dies.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tl_rome.errors import StorageError
from tl_rome.facts import Fact
from tl_rome.patching.result import TraceResult
from tl_rome.storage.files import SCHEMA_VERSION, digest, write_whole
from tl_rome.storage.ledger import check_settings

_KIND = "traces"


class TraceStore:
    """Traces of many facts, all made with the same settings.

    Args:
        folder: Where they are.

    Raises:
        StorageError: If the folder is not a store; `begin` makes one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings = _read_settings(self.folder)

    @classmethod
    def begin(cls, folder: str | Path, settings: Mapping[str, Any]) -> "TraceStore":
        """Open a store for these settings, made if needed.

        Raises:
            ModelMismatchError: If it belongs to another model.
            StorageError: If it was made with other settings, or cannot be written.
        """
        folder = Path(folder)
        with _locked(folder, "settings", wait=True):
            if not (folder / "settings.json").exists():
                header = {"kind": _KIND, "schema": SCHEMA_VERSION, "settings": settings}
                write_whole(folder / "settings.json", json.dumps(header, indent=2, ensure_ascii=False).encode())
        store = cls(folder)
        check_settings(folder, store.settings, settings)
        return store

    def claim(self, fact: Fact, *, wait: bool) -> Any:
        """Context manager that holds a fact's lock; it gives False if another has it and we are not to wait."""
        return _locked(self.folder, fact_id(fact), wait=wait)

    def missing(self, fact: Fact, components: Sequence[str]) -> list[str]:
        """The components that are still to be traced."""
        return [component for component in components if not self._path(fact, component).exists()]

    def put(self, fact: Fact, result: TraceResult) -> None:
        """Keep a trace; an earlier failure of the fact is forgotten."""
        result.save(self._path(fact, result.component))
        self._failure(fact).unlink(missing_ok=True)

    def get(self, fact: Fact, component: str) -> TraceResult | None:
        """The trace of a fact, if there is one."""
        path = self._path(fact, component)
        return TraceResult.load(path) if path.exists() else None

    def put_failure(self, fact: Fact, error: Exception) -> None:
        """Keep the reason why a fact could not be traced."""
        record = {"fact": asdict(fact), "error": f"{type(error).__name__}: {error}"}
        write_whole(self._failure(fact), json.dumps(record, ensure_ascii=False).encode())

    def failures(self) -> list[tuple[Fact, str]]:
        """Facts that could not be traced, each with the error's text."""
        records = [json.loads(path.read_text("utf-8")) for path in sorted(self.folder.glob("failed/*.json"))]
        return [(Fact(**record["fact"]), record["error"]) for record in records]

    def traces(self) -> dict[str, list[TraceResult]]:
        """All traces by component, in an order that does not depend on when they were made.

        Raises:
            StorageError: If a file is damaged.
        """
        found: dict[str, list[TraceResult]] = {}
        for path in sorted(self.folder.glob("*/*.safetensors")):
            found.setdefault(path.parent.name, []).append(TraceResult.load(path))
        return found

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


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / "settings.json").read_text("utf-8"))
        found, settings = (header["kind"], header["schema"]), dict(header["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{folder} is not a store of traces ({error!r}); name another folder") from error
    if found != (_KIND, SCHEMA_VERSION):
        raise StorageError(f"{folder} holds {found[0]!r} in schema {found[1]}; name another folder")
    return settings
