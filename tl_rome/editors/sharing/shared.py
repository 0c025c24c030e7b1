"""What key statistics, key memories and trained editors share: they are pushed to the hub as the files they are."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from tl_rome.editors.sharing.push import file_called, push_file


class Shared:
    """A value with a file of its own kind that others can use with the same model."""

    kind: ClassVar[str]
    """Kind of its files."""

    @property
    def file_name(self) -> str:
        """How its file is named in a repository of many."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write one file."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        file: str | None = None,
        private: bool = False,
        replace: bool = False,
        dry_run: str | Path | None = None,
        token: str | None = None,
    ) -> str:
        """Write it into a repository of the model hub beside others of its like, with a card that lists all of them.

        `find_on_hub` finds it there for the model that it is of.

        Args:
            repo_id: As in owner/name; it is made if need be.
            file: Name of the file; by default one that tells it from all others.
            private: Whether a new repository is seen by its owner alone; one that is public already is refused then.
            replace: Whether files of the same names with other content may be replaced.
            dry_run: Folder in which the files are written that would be sent; the hub is not asked.
            token: Of the hub; None for the one of `hf auth login` or HF_TOKEN.

        Returns:
            `hf://owner/name/file`, which `load` takes.

        Raises:
            InputError: If the name of the repository or of the file is none.
            NetworkError: If the hub does not answer, or its client has been told to stay offline.
            StorageError: If there is no token, the hub refuses, or the repository holds an edit, or other files that
                would be replaced. Nothing is sent then.
        """
        with TemporaryDirectory() as folder:
            path = self.save(Path(folder) / file_called(file, self.file_name))
            return push_file(path, repo_id, private=private, replace=replace, dry_run=dry_run, token=token)
