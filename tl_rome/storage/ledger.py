"""Append-only JSONL files of long work: what is in them need not be done again, whatever ended the run before.

The first line is a header with the file's kind, its schema and the settings of the run; every other line is one record.
Lines are only ever added, so a process that is killed can at most leave its last line torn, and that line is dropped
when the file is opened again. Every line carries a checksum, which depends on the header, so that damaged lines and
lines of other files are refused; a line that is taken out by hand is done again. Files in schema 1, which earlier
versions of this package wrote, have no checksums: they are read and continued as they are, with a logged warning.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from tl_rome.errors import ModelMismatchError, StorageError
from tl_rome.running.matrices import editable_matrices
from tl_rome.running.packed import packed_matrices
from tl_rome.sites import HookedModel
from tl_rome.storage.files import SCHEMA_VERSION, UNCHECKED, check_kind, fingerprint, sample_bytes, warn_unchecked
from tl_rome.storage.json_text import seal, to_json, unseal
from tl_rome.storage.parts import read_as
from tl_rome.storage.text import brief
from tl_rome.storage.writing import regular, write_whole


class Ledger:
    """An open file of records; made by `open_ledger`."""

    def __init__(self, path: Path, records: list[dict[str, Any]], file: BinaryIO | OSError, key: str | None) -> None:
        self.path = path
        self.records = records
        self._file = file
        """The file, or why it cannot be written."""
        self._key = key
        """What its checksums begin with; None where it has none."""

    def append(self, *records: Mapping[str, Any]) -> None:
        """Add JSON-serialisable records; they are on the disk when this returns, or none of them is in the file.

        Raises:
            StorageError: If they cannot be written, as on a full disk, or have no form in JSON.
        """
        if not records:
            return
        file, lines = self.check_writable(), "".join(map(self._line, records)).encode()
        end = file.tell()
        try:
            _write_all(file, lines)
            os.fsync(file.fileno())
        except BaseException as error:
            with suppress(OSError):
                file.truncate(end)
                file.seek(end)
            if not isinstance(error, OSError):
                raise
            raise StorageError(f"cannot write {self.path}: {error}; what was written before is kept") from error
        self.records.extend(dict(record) for record in records)

    def check_writable(self) -> BinaryIO:
        """The file; for those who are about to work for it.

        Raises:
            StorageError: If nothing can be added to it.
        """
        if isinstance(self._file, OSError):
            raise StorageError(f"cannot write {self.path}: {self._file}; copy it to a place where you can write")
        return self._file

    def _line(self, record: Mapping[str, Any]) -> str:
        try:
            return (to_json(record) if self._key is None else seal(record, self._key)) + "\n"
        except ValueError as error:
            raise StorageError(f"cannot write the record {brief(record)} to {self.path} as JSON: {error}") from error


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take a part at a time."""
    while data:
        data = data[file.write(data) :]


@contextmanager
def open_ledger(
    path: str | Path, kind: str, settings: Mapping[str, Any], fields: Mapping[str, Any] | None = None
) -> Iterator[Ledger]:
    """Open a file of records, or begin one; no other process can open it meanwhile.

    One in a read-only folder is opened for reading alone.

    Args:
        path: The file; parent folders are made.
        kind: What its records are.
        settings: JSON-serialisable, see also `model_settings`; a file made with others is refused.
        fields: What every record has, with the types, as `read_ledger` takes them.

    Raises:
        ModelMismatchError: If the file belongs to another model.
        StorageError: If it was made with other settings, is damaged, of another kind, in use, not a regular file, or
            cannot be written.
    """
    path = Path(path)
    header = {"kind": kind, "schema": SCHEMA_VERSION, "settings": dict(settings)}
    with ExitStack() as stack:
        refused = _begin(path, header, stack)
        lines, key = _read(path, kind, fields or {})
        check_settings(path, lines[0]["settings"], header["settings"])
        if lines[0]["schema"] == UNCHECKED:
            warn_unchecked(path)
        yield Ledger(path, lines[1:], refused or _opened(path, stack), key)


def _begin(path: Path, header: Mapping[str, Any], stack: ExitStack) -> OSError | None:
    """Lock a file until the stack is closed, and write its header if it is new; or say why it can only be read."""
    place = regular(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(f"{place}.lock", timeout=0))
        if not place.exists() or not place.stat().st_size:
            write_whole(place, f"{seal(header)}\n".encode())
    except Timeout as error:
        raise StorageError(f"{path} is in use by another process; wait for it, or name another file") from error
    except ValueError as error:
        raise StorageError(f"cannot write {path}: its settings have no form in JSON ({error})") from error
    except OSError as error:
        if not place.exists():
            raise StorageError(f"cannot write {path}: {error}") from error
        return error
    return None


def _opened(path: Path, stack: ExitStack) -> BinaryIO | OSError:
    """The file until the stack is closed, at the end of its last whole line; or why it can only be read."""
    try:
        whole = path.read_bytes().rfind(b"\n") + 1
        file = stack.enter_context(path.open("r+b", buffering=0))
        file.truncate(whole)
        file.seek(whole)
    except OSError as error:
        return error
    return file


def read_ledger(
    path: str | Path, kind: str | None = None, fields: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The header and the records of a file, without a torn last line.

    Args:
        path: The file.
        kind: What its records should be; None takes any.
        fields: What every record must have, with the types, as `read_as` takes them; others may be there too.

    Raises:
        StorageError: If the file is absent, damaged or of another kind, or a record lacks a field; it names the line.
    """
    return _read(path, kind, fields or {})[0]


def _read(path: str | Path, kind: str | None, fields: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """Header and records, and what the checksums begin with: that of the header."""
    try:
        first, *others = regular(Path(path)).read_bytes().split(b"\n")[:-1] or [b""]
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    with _at(path, 1):
        header, key = unseal(first) if first else ({}, None)
    if not isinstance(header.get("settings"), dict):
        raise StorageError(f"{path} does not begin with the header of a run; name another file")
    check_kind(path, header, str(header.get("kind")) if kind is None else kind)
    with _at(path, 1):
        if key is None and header["schema"] != UNCHECKED:
            raise ValueError("it has no checksum")
    lines = [header]
    for number, line in enumerate(others, 2):
        with _at(path, number):
            record, checksum = unseal(line, key or "")
            if (checksum is None) != (key is None):
                raise ValueError("it has no checksum" if checksum is None else "the header has no checksum")
            for name, type_ in fields.items():
                if name not in record:
                    raise ValueError(f"it has no {name!r}")
                read_as(type_, record[name], name)
        lines.append(record)
    return lines, key


@contextmanager
def _at(path: str | Path, number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StorageError(
            f"line {number} of {path} is damaged ({error}); delete that line, to have it done again, or the file"
        ) from error


def model_settings(model: HookedModel) -> dict[str, Any]:
    """What stored work depends on in a model: its fingerprint, what edits change of it, its BOS policy."""
    bos = bool(model.cfg.default_prepend_bos)
    return {"model": fingerprint(model), "weights": edited_weights(model), "bos": bos}


def edited_weights(model: HookedModel) -> str:
    """16 hexadecimal digits of samples of every matrix that an edit can change; of packed ones what hooks add too."""
    digest = hashlib.sha256()
    for weight in editable_matrices(model).values():
        digest.update(sample_bytes(weight))
    for packed in packed_matrices(model):
        for _, stored in packed.stored:
            digest.update(sample_bytes(stored.reshape(-1, stored.shape[-1]) if stored.ndim else stored[None]))
        digest.update(" ".join(packed.added).encode())
    return digest.hexdigest()[:16]


def check_settings(what: str | Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to add to stored work that was done with another model or with other settings.

    Raises:
        ModelMismatchError: If `model` or `weights` differs.
        StorageError: If anything else does; the message shows what.
    """
    different = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if not different:
        return
    shown = ", ".join(f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in different)
    error = ModelMismatchError if {"model", "weights"} & set(different) else StorageError
    raise error(f"{what} was made with {shown}; name another place, or use the same settings")
