"""Writing files and folders that appear whole or not at all.

Only regular files are replaced: a device, a pipe or a folder under the name is refused, and a link stays, with its
target rewritten. New files have the permissions that the umask leaves, replaced ones keep theirs.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from tl_rome.errors import StorageError

_NAME = 40
"""Characters of a file's name that its temporary neighbour repeats."""


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file, which appears whole or not at all; parent folders are made.

    Args:
        path: The file; where it is a link, its target is written and the link stays.
        data: All that the file is to hold.

    Raises:
        StorageError: If it cannot be written, or is something else than a regular file.
    """
    target, temporary = regular(path), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _neighbor(target)
        with temporary.open("xb") as file:  # with the permissions that the umask leaves, unlike tempfile's
            file.write(data)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to be filled, whose files appear in the one that is meant when the block ends without an error.

    What is there already stays, except files that are written anew. Parent folders are made.

    Args:
        folder: Where the files are to be; nothing is written there before the end.

    Raises:
        StorageError: If something cannot be written, also by the block; nothing is left behind.
    """
    target = Path(os.path.realpath(folder))
    temporary = _neighbor(target)
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError("it exists and is not a folder; name another place")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        share(temporary)
        if target.exists() and any(target.iterdir()):
            for file in temporary.iterdir():
                os.replace(file, target / file.name)
        else:
            os.replace(temporary, target)
    except Exception as error:
        if not is_of_disk(error):
            raise
        raise StorageError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_of_disk(error: Exception) -> bool:
    """Whether an error is one of writing or reading, as Python, safetensors and tokenizers raise them.

    The last have no type for it but `Exception` itself.
    """
    return isinstance(error, OSError | SafetensorError) or type(error) is Exception


def share(folder: Path) -> None:
    """Give the files of a folder the permissions of a new file, which are those of the folder, but for entering it.

    Safetensors makes files that nobody but their owner may read.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(mode)


def regular(path: Path) -> Path:
    """The place that a path stands for, behind links: a regular file, or nothing yet.

    Raises:
        StorageError: If there is something else, such as a folder, a pipe or a device.
    """
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode if os.path.lexists(target) else None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot use {path}: {error}") from error
    if mode is not None and not stat.S_ISREG(mode):
        raise StorageError(f"{path} is {_kind(mode)}, not a regular file; name a file")
    return target


def _neighbor(path: Path) -> Path:
    """An unused hidden name beside a path."""
    return path.with_name(f".{path.name[:_NAME]}.{uuid4().hex[:12]}")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
