"""Text files as others publish them: gzipped, with a byte order mark, or a Git LFS pointer in place of the data."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tl_rome.errors import StorageError

_GZIP = b"\x1f\x8b"
_POINTER = b"version https://git-lfs.github.com/spec/"
_BRIEF = 60
"""Characters of a value that an error shows."""


def ending(path: str | Path) -> str:
    """What a file's name says that it holds, such as ".json": in lower case, without ".gz"."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, gzipped or not, without the byte order mark that Windows tools write.

    Raises:
        StorageError: If the file cannot be read, is a Git LFS pointer, or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if data.startswith(_GZIP) else data
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if data.startswith(_POINTER):
        refuse_pointer(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StorageError(f"cannot read {path}: {error}; save it as UTF-8") from error


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def refuse_pointer(path: str | Path) -> NoReturn:
    """Say what a Git LFS pointer is.

    Raises:
        StorageError: Always.
    """
    raise StorageError(
        f"{path} is a Git LFS pointer, not the data that it stands for; run `git lfs pull` in its repository, or "
        "download the file itself"
    )


def brief(value: Any, show: Callable[[Any], str] = repr) -> str:
    """A value as an error shows it, cut to a few dozen characters."""
    try:
        text = show(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 3]}..."
