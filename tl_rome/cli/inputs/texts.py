"""Text that can be streamed more than once: files on disk, or a data set by its name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_rome.errors import InputError


@dataclass(frozen=True)
class TextFiles:
    """Text files in UTF-8, one text a line."""

    files: tuple[Path, ...]
    """Read one after another."""

    @property
    def source(self) -> str:
        """Names of the files."""
        return ", ".join(file.name for file in self.files)

    def __iter__(self) -> Iterator[str]:
        for file in self.files:
            try:
                with file.open(encoding="utf-8") as lines:
                    yield from (line.rstrip("\n") for line in lines)
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot read {file}: {error}; give a text file in UTF-8") from error


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub, or a folder that `datasets` can read; streamed, never downloaded as a whole."""

    name: str
    """Name on the hub, or folder."""
    subset: str | None
    """Its configuration, such as "20231101.en", where it has several."""
    split: str
    """Such as "train"."""

    @property
    def source(self) -> str:
        """What was read."""
        return ", ".join(part for part in (self.name, self.subset, self.split) if part is not None)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        from datasets import load_dataset

        try:
            yield from load_dataset(self.name, self.subset, split=self.split, streaming=True)
        except Exception as error:  # hub, network and file errors share no base class
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(
                f"cannot read the data set {self.source!r} ({reason}); check name, --subset, --split and the network"
            ) from error


Texts = TextFiles | Dataset
