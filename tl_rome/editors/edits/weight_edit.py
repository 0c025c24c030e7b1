"""What every edit is, whatever it was asked for: updates of matrices, applied and taken back bit for bit."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from tl_rome.editors.edits.former import of_today
from tl_rome.editors.edits.portable_edit import PortableEdit
from tl_rome.editors.edits.update import Update, check_places, update_from
from tl_rome.editors.edits.weights import check_weights
from tl_rome.editors.edits.written import Changes, changes_of, check_writable, hooks_reason, updates_applied, write
from tl_rome.errors import EditStateError, InputError, StorageError
from tl_rome.running.interrupts import reliable, uninterrupted
from tl_rome.running.loans import lent
from tl_rome.running.matrices import MatrixName, MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import check_fingerprint, load, save
from tl_rome.storage.hub import local_path
from tl_rome.storage.parts import read_as, reading

SEQUENCE_KIND = "edit_sequence"
"""Kind of file that holds several."""
_Kind = TypeVar("_Kind", bound="WeightEdit")


class WeightEdit(PortableEdit):
    """The mechanics of an edit; a dataclass that inherits them has these fields, and those that say what was asked for.

    Raises:
        InputError: If two updates are of the same matrix.
    """

    asked: ClassVar[Mapping[str, Any]]
    """The fields that say what was asked for and what it did, with their types."""
    updates: tuple[Update, ...]
    model: str
    provenance: Mapping[str, Any]
    digests: Mapping[MlpMatrix, tuple[str, str]]
    _undo: list[tuple[weakref.ref, Changes]]

    def __post_init__(self) -> None:
        check_places(self.updates)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_undo": []}  # a copy, pickled or not, is applied to nothing

    @property
    def label(self) -> str:
        """What was asked for, for messages."""
        raise NotImplementedError

    @property
    def places(self) -> tuple[MlpMatrix, ...]:
        """The matrices that it changes."""
        return tuple(update.place for update in self.updates)

    @reliable
    def applied(self, model: HookedModel) -> Iterator[HookedModel]:
        """The edited model, for the length of a `with` block; the weights are back bit for bit afterwards.

        Where a matrix is packed, as in quantised models, it is edited by hooks, and weights stay as they are.

        Raises:
            ModelMismatchError: If the edit is for another model, or was made on other weights of this one.
            EditStateError: If it is applied already, or the weights were changed by others inside the block.
        """
        with lent(model):
            if hooks_reason(model, self.places):
                check_fingerprint(model, self.model, "this edit")
                check_weights(model, [[self]])
                with updates_applied(model, self.updates):
                    yield model
                return
            self.apply(model)
            try:
                yield model
            finally:
                if self.is_applied(model):
                    self.undo(model)

    def is_applied(self, model: HookedModel) -> bool:
        """Whether `apply` has been called on this model and `undo` has not."""
        return self._position(model) is not None

    def apply(self, model: HookedModel) -> None:
        """Write the edit into the model's weights, in place, and keep the old ones for `undo`.

        An interruption leaves the edit in or out, and `is_applied` says which.

        Raises:
            UnsupportedModelError: If the model is quantised, so that its weights cannot be written; `applied` and
                `edited_rows` run edits on such models.
            ModelMismatchError: If the edit is for another model, or was made on other weights of this one.
            EditStateError: If it is applied already, to this model or to the one that it was copied or loaded from, or
                the model does not take the weights.
            NumericsError: If the new weights would not be finite in the model's dtype.
        """
        with lent(model):
            with suppress(InputError):  # a quantised copy has another fingerprint too, which says less
                check_writable(model, self.places)
            check_fingerprint(model, self.model, "this edit")
            self._check_not_applied(model)
            check_weights(model, [[self]])
            self.apply_unchecked(model)

    @uninterrupted
    def apply_unchecked(self, model: HookedModel) -> None:
        """As `apply`, without comparing model and weights; for a sequence, which has compared them.

        Raises:
            EditStateError: As `apply` does.
            NumericsError: As `apply` does.
        """
        self._check_not_applied(model)
        changes = changes_of(model, self.updates)
        entry = weakref.ref(model), changes
        self._undo.append(entry)
        try:
            write(model, {place: after for place, (_, after) in changes.items()})
        except BaseException:
            write(model, {place: before for place, (before, _) in changes.items()})
            self._undo.remove(entry)
            raise

    @uninterrupted
    def undo(self, model: HookedModel) -> None:
        """Put the weights back exactly as they were before `apply`.

        Edits of different matrices may be undone in any order, those that share one last one first.

        Raises:
            EditStateError: If the edit is not applied to this model, or its weights have been changed since.
        """
        position = self._position(model)
        if position is None:
            raise EditStateError("this edit is not applied to this model, so there is nothing to undo")
        changes = self._undo[position][1]
        with lent(model):
            for place, (_, after) in changes.items():
                if not torch.equal(place.weight(model), after):
                    raise EditStateError(
                        f"{place} has changed since this edit was applied, so what it replaced cannot be put back "
                        "without losing that change; undo what was applied later first, in reverse order"
                    )
            write(model, {place: before for place, (before, _) in changes.items()})
            del self._undo[position]

    def _check_not_applied(self, model: HookedModel) -> None:
        if self.is_applied(model):
            raise EditStateError("this edit is applied to this model already; undo it first")

    def _position(self, model: HookedModel) -> int | None:
        return next((i for i, (held, _) in enumerate(self._undo) if held() is model), None)

    def save(self, path: str | Path) -> Path:
        """Write a small safetensors file with the updates, the receipt and all provenance.

        Raises:
            StorageError: If the file cannot be written.
        """
        return save(path, self.kind, *self.to_file())

    @classmethod
    def load(cls: type[_Kind], path: str | Path, model: HookedModel | None = None) -> _Kind:
        """Read an edit that `save` wrote.

        Args:
            path: The file, or `hf://owner/name/file` for one that is shared in a repository of the model hub.
            model: If given, the edit is checked to belong to it at once, otherwise when it is applied.

        Raises:
            StorageError: If the file is damaged, holds something else, or cannot be fetched.
            ModelMismatchError: If the edit is for another model.
        """
        try:
            edit = cls.from_file(*load(local_path(path), cls.kind), path)
        except StorageError as error:
            if f"holds '{SEQUENCE_KIND}'" in str(error):
                raise StorageError(f"{error}; it is several composed edits: use EditSequence.load") from error
            raise
        if model is not None:
            check_fingerprint(model, edit.model, str(path))
        return edit

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps of the edit: tensors, and a JSON-serialisable header."""
        names = [f"{place.layer}.{place.name}" for place in self.places]
        parts = zip(names, self.updates, strict=True)
        tensors = {f"{name}.{field}": part for name, update in parts for field, part in update.tensors.items()}
        header = {
            "matrices": names,
            **{name: _plain(getattr(self, name)) for name in self.asked},
            "model": self.model,
            "provenance": dict(self.provenance),
            "digests": {f"{place.layer}.{place.name}": list(pair) for place, pair in self.digests.items()},
        }
        return tensors, header

    @classmethod
    def from_file(
        cls: type[_Kind], tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: str | Path
    ) -> _Kind:
        """The edit that `to_file` took apart; the path is for messages.

        Raises:
            StorageError: If a part is missing.
        """
        with reading(path, "an edit"):
            tensors, header = of_today(tensors, header)
            places = {name: _place(name) for name in read_as(tuple[str, ...], header["matrices"], "matrices")}
            parts: dict[str, dict[str, Tensor]] = {name: {} for name in places}
            for full, tensor in tensors.items():
                name, _, part = full.rpartition(".")
                parts[name][part] = tensor
            digests = read_as(dict[str, tuple[str, str]], header.get("digests", {}), "digests")
            asked = {name: read_as(kind, header[name], name) for name, kind in cls.asked.items()}
            made: Any = cls  # a dataclass
            return made(
                updates=tuple(update_from(place, parts[name]) for name, place in places.items()),
                **asked,
                model=read_as(str, header["model"], "model"),
                provenance=read_as(dict[str, Any], header["provenance"], "provenance"),
                digests={_place(name): pair for name, pair in digests.items()},
            )


def _plain(value: Any) -> Any:
    """A dataclass, or several, as JSON has them."""
    return [asdict(each) for each in value] if isinstance(value, tuple) else asdict(value)


def _place(name: str) -> MlpMatrix:
    """The matrix that a file names so, as in "5.W_out"."""
    layer, _, matrix = name.partition(".")
    return MlpMatrix(int(layer), read_as(MatrixName, matrix, name))
