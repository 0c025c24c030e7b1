"""Append-only JSONL files of long work: what is in them need not be done again, whatever ended the run before.

The first line is a header with the file's kind, its schema and the settings of the run; every other line is one record.
Lines are only ever added, so a process that is killed can at most leave its last line torn, and that line is dropped
when the file is opened again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from tl_rome.errors import ModelMismatchError, StorageError, UnsupportedModelError
from tl_rome.sites import HookedModel, w_out
from tl_rome.storage.files import SCHEMA_VERSION, fingerprint, write_whole

_SAMPLED = 64
"""Rows, and columns, of each weight that a digest looks at."""


class Ledger:
    """An open file of records; made by `open_ledger`."""

    def __init__(self, path: Path, records: list[dict[str, Any]], file: BinaryIO) -> None:
        self.path = path
        self.records = records
        self._file = file

    def append(self, *records: Mapping[str, Any]) -> None:
        """Add JSON-serialisable records; they are on the disk when this returns, or none of them is in the file.

        Raises:
            StorageError: If they cannot be written, as on a full disk.
        """
        lines, end = "".join(map(_line, records)).encode(), self._file.tell()
        try:
            _write_all(self._file, lines)
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
                self._file.seek(end)
            raise StorageError(f"cannot write {self.path}: {error}; what was written before is kept") from error
        self.records.extend(dict(record) for record in records)


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take a part at a time."""
    while data:
        data = data[file.write(data) :]


@contextmanager
def open_ledger(path: str | Path, kind: str, settings: Mapping[str, Any]) -> Iterator[Ledger]:
    """Open a file of records, or begin one; no other process can open it meanwhile.

    Args:
        path: The file; parent folders are made.
        kind: What its records are.
        settings: JSON-serialisable, see also `model_settings`; a file made with others is refused.

    Raises:
        ModelMismatchError: If the file belongs to another model.
        StorageError: If it was made with other settings, is damaged, of another kind, in use, or cannot be written.
    """
    path = Path(path)
    header = {"kind": kind, "schema": SCHEMA_VERSION, "settings": dict(settings)}
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock", timeout=0))
            if not path.exists() or not path.stat().st_size:
                write_whole(path, _line(header).encode())
            found, *records = read_ledger(path)
            _compare(path, found, header)
            whole = path.read_bytes().rfind(b"\n") + 1
            file = stack.enter_context(path.open("r+b", buffering=0))
            file.truncate(whole)
            file.seek(whole)
        except Timeout as error:
            raise StorageError(f"{path} is in use by another process; wait for it, or name another file") from error
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error}") from error
        yield Ledger(path, records, file)


def read_ledger(path: str | Path) -> list[dict[str, Any]]:
    """The header and the records of a file, without a torn last line.

    Raises:
        StorageError: If the file is absent or damaged.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append({**json.loads(line)})
        except (ValueError, TypeError) as error:
            raise StorageError(f"line {number} of {path} is damaged ({error}); mend or delete the file") from error
    if not records or not isinstance(records[0].get("settings"), dict):
        raise StorageError(f"{path} does not begin with the header of a run; name another file")
    return records


def model_settings(model: HookedModel) -> dict[str, Any]:
    """What stored work depends on in a model: its fingerprint, its W_out (which edits change), its BOS policy."""
    bos = bool(model.cfg.default_prepend_bos)
    return {"model": fingerprint(model), "weights": edited_weights(model), "bos": bos}


def edited_weights(model: HookedModel) -> str:
    """16 hexadecimal digits of samples of every W_out.

    A layer without a plain W_out cannot be edited, and does not count.
    """
    digest = hashlib.sha256()
    for layer in range(model.cfg.n_layers):
        try:
            weight = w_out(model, layer).detach()
        except UnsupportedModelError:
            continue
        sample = weight[:: max(1, len(weight) // _SAMPLED), :: max(1, weight.shape[1] // _SAMPLED)]
        digest.update(sample.float().cpu().contiguous().numpy().tobytes())
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


def _compare(path: Path, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    if (found.get("kind"), found.get("schema")) != (header["kind"], header["schema"]):
        raise StorageError(
            f"{path} holds {found.get('kind')!r} in schema {found.get('schema')}, "
            f"not {header['kind']!r} in schema {header['schema']}"
        )
    check_settings(path, found["settings"], header["settings"])


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
