"""Text as others publish it: gzipped, with a byte order mark, or a Git LFS pointer in its place; and as it is shown.

Text of records and models goes to terminals, logs and tables. `visible` escapes what could drive a terminal or reorder
what is read: control characters, with which escape sequences begin, and overrides of the direction of text.
"""

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tl_rome.errors import StorageError

_GZIP = b"\x1f\x8b"
_POINTER = b"version https://git-lfs.github.com/spec/"
_BRIEF = 60
"""Characters of a value that an error shows."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, line separators, overrides of direction, and half characters."""
_HALF = re.compile(r"[\ud800-\udfff]")


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
        text = visible(show(value))
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 3]}..."


def visible(text: str) -> str:
    """A text with its control characters and half characters as in Python's `repr`, all others as they are."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def has_half_character(text: str) -> bool:
    """Whether a text holds a lone surrogate, which no file, tokenizer or terminal takes."""
    return not text.isascii() and _HALF.search(text) is not None
