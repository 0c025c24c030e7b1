"""A file of ours to a repository of the hub, with a card.

A repository holds one edit, so that its LoRA adapter can stand beside it where PEFT looks for it; or any number of key
statistics, key memories and trained editors, of one model or several, from which `find_on_hub` picks.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tl_rome.editors.export.card import WRITTEN
from tl_rome.editors.sharing.catalogue import EDITS, NAMES, belongs_to, catalogue_card
from tl_rome.errors import InputError, ModelMismatchError, StorageError
from tl_rome.storage.files import load, read_header
from tl_rome.storage.repository import Repository, repository_name
from tl_rome.storage.writing import whole_folder

CARD = "README.md"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""Where PEFT looks for an adapter."""


def file_called(name: str | None, usual: str) -> str:
    """The name of a file in a repository: the one that was asked for, or the usual one.

    Raises:
        InputError: If it is no plain name of a safetensors file, or that of an adapter's.
    """
    name = usual if name is None else name
    if Path(name).name != name or not name.endswith(".safetensors") or name in (*ADAPTER, ".safetensors"):
        raise InputError(f"{name!r} cannot be the file's name; give one like {usual!r}, without folders")
    return name


def push_file(
    path: str | Path,
    repo_id: str,
    *,
    beside: Callable[[Path, str], None] | None = None,
    private: bool = False,
    replace: bool = False,
    dry_run: str | Path | None = None,
    token: str | None = None,
) -> str:
    """Write a file of this package into a repository of the hub, which is made if need be, in one commit.

    Args:
        path: A file that `save` of an edit, of key statistics, of a key memory or of a trained editor wrote.
        repo_id: As in owner/name.
        beside: Called with a folder and the file's location; writes the card, and an adapter. By default the card
            lists all files that the repository then has.
        private: Whether a new repository is seen by its owner alone; one that is public already is refused then.
        replace: Whether files of the same names with other content may be replaced. The hub keeps the former ones in
            the repository's history.
        dry_run: Folder in which the files are written that would be sent; the hub is not asked.
        token: Of the hub; None for the one of `hf auth login` or HF_TOKEN.

    Returns:
        `hf://owner/name/file`, which `load` takes.

    Raises:
        InputError: If the name of the repository is none.
        NetworkError: If the hub does not answer, or its client has been told to stay offline.
        ModelMismatchError: If the repository holds an edit of another model.
        StorageError: If the file is damaged, there is no token, the hub refuses, or the repository holds other files
            that would be replaced. Nothing is sent then.
    """
    path, (name, _) = Path(path), repository_name(repo_id)
    header = read_header(path)
    if header.get("kind") not in (*EDITS, *NAMES):
        known = ", ".join((*EDITS, *NAMES))
        raise StorageError(f"{path} holds {header.get('kind')!r}, which is not shared here; push one of {known}")
    load(path, header["kind"])  # a damaged file is not sent
    if dry_run is not None:
        here = Repository(name, None, None, private, {})
        with whole_folder(Path(dry_run)) as folder:
            _fill(folder, path, header, here, beside)
        return here.location(path.name)
    _check_token(token)
    there = Repository.look(repo_id, token)
    _check_fits(path.name, header, there, private)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _fill(folder, path, header, there, beside)
        stale = [file for file in ADAPTER if file in there.files and not (folder / file).exists()]
        stale = stale if header["kind"] in EDITS else []
        changed = [each.name for each in there.differing(folder) if each.name in there.files]
        _check_replaces(there, [*changed, *stale], replace)
        there.write(folder, f"Add {path.name}", private=private, without=stale)
    return there.location(path.name)


def _fill(
    folder: Path,
    path: Path,
    header: Mapping[str, Any],
    there: Repository,
    beside: Callable[[Path, str], None] | None,
) -> None:
    if beside is None:
        card = catalogue_card(there, {**there.headers, path.name: header})
        (folder / CARD).write_text(card, encoding="utf-8")
    else:
        beside(folder, there.location(path.name))
    shutil.copyfile(path, folder / path.name)


def _check_token(token: str | None) -> None:
    from huggingface_hub import get_token

    if not (token or get_token()):
        raise StorageError(
            "there is no token of the hub: run `hf auth login`, or set HF_TOKEN, with one that may write; a dry run "
            "needs none"
        )


def _check_fits(file: str, header: Mapping[str, Any], there: Repository, private: bool) -> None:
    """Refuse a repository that is for something else."""
    if private and there.commit and not there.private:
        raise StorageError(f"{there.name} is public; make it private on the hub, or name a new repository")
    is_edit = header["kind"] in EDITS
    for name, other in there.headers.items():
        if not is_edit and other["kind"] not in EDITS:
            continue
        if is_edit and other["kind"] in EDITS and belongs_to(other) != belongs_to(header):
            raise ModelMismatchError(
                f"{there.name} holds {name} of the model with fingerprint {belongs_to(other)}, {file} is of "
                f"{belongs_to(header)}; name another repository"
            )
        if name != file:
            raise StorageError(
                f"{there.name} holds {name} already, and an edit has a repository of its own; name another one, or "
                "compose the edits"
            )


def _check_replaces(there: Repository, files: Iterable[str], replace: bool) -> None:
    changed = [file for file in files if file != CARD or WRITTEN not in there.text(CARD)]
    if changed and not replace:
        raise StorageError(
            f"{there.name} has {', '.join(changed)} with other content; replace it (replace=True, --replace), which "
            "keeps the former in the repository's history, or name another repository"
        )
