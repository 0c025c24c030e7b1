"""A model repository of the hub: what it holds, read without fetching its files, and new files in one commit.

A file's header stands in its first bytes, so a repository of many large files is looked through by one request of some
kilobytes a file. What is written appears in one commit, or nothing does; the commit is refused by the hub if somebody
else wrote to the repository after it was looked at.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tl_rome.errors import InputError, NetworkError, StorageError
from tl_rome.storage.files import HEADER
from tl_rome.storage.hub import hub_silence
from tl_rome.storage.json_text import parse_json

_NAME = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Repository:
    """What one model repository holds at one commit."""

    name: str
    """As in owner/name."""
    revision: str | None
    """Branch, tag or commit that was asked for."""
    commit: str | None
    """The commit; None where the repository does not exist, or may not be seen."""
    private: bool
    """Whether only its owner sees it."""
    files: Mapping[str, str]
    """For each file, what the hub knows its content by: sha256 of a large one, git's own digest of another."""
    token: str | None = field(default=None, repr=False)
    """Of the hub's client; None for the one that the user has logged in with, if any."""

    @classmethod
    def look(cls, location: str, token: str | None = None) -> "Repository":
        """Ask the hub for a repository, which may be a new one.

        Args:
            location: `owner/name`, with or without `hf://` before it and `@revision` behind it.
            token: Of the hub's client; None for the user's own.

        Raises:
            InputError: If the location is something else.
            NetworkError: If the hub does not answer, or its client has been told to stay offline.
            StorageError: If the hub refuses.
        """
        name, revision = repository_name(location)
        _check_answers(name)
        from huggingface_hub.errors import RepositoryNotFoundError

        with _asking(f"cannot look into {name}"):
            try:
                found = _client(token).model_info(name, revision=revision, files_metadata=True)
            except RepositoryNotFoundError:
                return cls(name, revision, None, False, {}, token)
        files = {each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id or "" for each in found.siblings or ()}
        return cls(name, revision, found.sha, bool(found.private), files, token)

    def location(self, file: str) -> str:
        """What `load` takes for a file."""
        return f"hf://{self.name}{f'@{self.revision}' if self.revision else ''}/{file}"

    @cached_property
    def headers(self) -> dict[str, dict[str, Any]]:
        """The header of each file that this package wrote; asked for once.

        Raises:
            NetworkError: If the hub stops answering.
            StorageError: If the hub refuses.
        """
        found = {name: self._header(name) for name in self.files if name.endswith(".safetensors")}
        return {name: header for name, header in found.items() if header is not None}

    def _header(self, file: str) -> dict[str, Any] | None:
        from huggingface_hub.errors import SafetensorsParsingError

        with _asking(f"cannot look into {self.location(file)}"):
            try:
                about = _client(self.token).parse_safetensors_file_metadata(self.name, file, revision=self.commit)
                return {**parse_json(about.metadata[HEADER])}
            except (SafetensorsParsingError, LookupError, TypeError, ValueError):  # none of ours
                return None

    def text(self, file: str) -> str:
        """A small text file.

        Raises:
            NetworkError: If the hub stops answering.
            StorageError: If the file cannot be fetched.
        """
        from huggingface_hub import hf_hub_download

        with _asking(f"cannot fetch {self.location(file)}"):
            path = hf_hub_download(self.name, file, revision=self.commit, token=self.token)
            return Path(path).read_text("utf-8", "replace")

    def differing(self, folder: Path) -> list[Path]:
        """Files of a folder that the repository does not have, or has with other content."""
        return sorted(path for path in folder.iterdir() if self.files.get(path.name) not in _digests(path.read_bytes()))

    def write(self, folder: Path, message: str, *, private: bool, without: Iterable[str] = ()) -> None:
        """Add the files of a folder, in one commit on top of the one that was looked at; the repository is made.

        Args:
            folder: Its files replace those of the same names; where all are there already, no commit is made.
            message: Of the commit.
            private: Whether a new repository is seen by its owner alone.
            without: Files that the commit takes out.

        Raises:
            NetworkError: If the hub stops answering.
            StorageError: If the hub refuses, or the repository has been written to since it was looked at.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        client, parent = _client(self.token), self.commit
        changes = [
            *(CommitOperationAdd(path.name, path) for path in self.differing(folder)),
            *(CommitOperationDelete(name) for name in without),
        ]
        if not changes:
            return
        with _asking(f"cannot write to {self.name}"):
            if parent is None:
                client.create_repo(self.name, private=private, exist_ok=False)
                parent = client.model_info(self.name).sha
            where: dict[str, Any] = {"revision": self.revision, "parent_commit": parent}
            client.create_commit(self.name, changes, commit_message=message, **where)


def _digests(data: bytes) -> tuple[str, str]:
    """What the hub may know a content by."""
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def repository_name(location: str) -> tuple[str, str | None]:
    """Owner/name, and the revision, of a location.

    Raises:
        InputError: If it is none.
    """
    found = _NAME.fullmatch(location)
    if found is None or ".." in location:
        raise InputError(f"{location!r} does not name a repository; write 'owner/name'")
    return found[1], found[2]


def _check_answers(name: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise NetworkError(
            f"cannot look into {name}: the hub's client has been told to stay offline (HF_HUB_OFFLINE); unset it"
        )
    if silence := hub_silence(f"api/models/{name}"):
        raise NetworkError(f"cannot look into {name}: {silence}")


def _client(token: str | None) -> Any:
    from huggingface_hub import HfApi, constants

    from tl_rome import __version__

    return HfApi(constants.ENDPOINT, token=token, library_name="tl_rome", library_version=__version__)


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Errors of the hub's client as ours; nothing but one commit changes anything, so nothing is half done."""
    try:
        yield
    except Exception as error:  # of the hub's client, of the libraries below it, and of the network
        while type(error) is RuntimeError and isinstance(error.__cause__, Exception):  # around those of an upload
            error = error.__cause__
        answer = getattr(error, "response", None)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        status = getattr(answer, "status_code", None)
        if status in (401, 403):
            remedy = "the token may not do this; make one that may write there, or name a repository of your own"
        elif status in (409, 412):
            remedy = "somebody wrote to it meanwhile, so nothing was written; do it again"
        elif status is None and not isinstance(error, ValueError | LookupError):
            raise NetworkError(f"{what}: {reason}; check the network, and do it again: nothing is lost") from error
        else:
            remedy = "see what the hub says, and do it again"
        raise StorageError(f"{what}: {reason}; {remedy}") from error
