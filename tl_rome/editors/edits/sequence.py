"""Several edits as one: applied one after another, undone in reverse, kept in one file."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from tl_rome.editors.edits.batch_edit import BatchEdit
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.portable_edit import PortableEdit
from tl_rome.editors.edits.receipts.receipt import describe_places
from tl_rome.editors.edits.update import Update
from tl_rome.editors.edits.weight_edit import SEQUENCE_KIND, WeightEdit
from tl_rome.editors.edits.weights import check_weights
from tl_rome.editors.edits.written import check_writable, hooks_reason, updates_applied
from tl_rome.errors import InputError
from tl_rome.running.interrupts import reliable, uninterrupted
from tl_rome.running.loans import lent
from tl_rome.sites import HookedModel
from tl_rome.storage.files import check_fingerprint, load, save
from tl_rome.storage.hub import local_path
from tl_rome.storage.parts import read_as, reading

_Step = Callable[[WeightEdit, HookedModel], None]


@dataclass(frozen=True, eq=False, repr=False)
class EditSequence(PortableEdit):
    """Edits of one model in the order in which they are applied; to a model it is used as one `Edit` is.

    Raises:
        InputError: If there is no edit, or they are for different models.
    """

    kind: ClassVar[str] = SEQUENCE_KIND
    edits: tuple[Edit | BatchEdit, ...]
    """First to last."""

    def __post_init__(self) -> None:
        models = {edit.model for edit in self.edits}
        if len(models) != 1:
            raise InputError(
                f"a sequence needs edits of one model, got {len(self.edits)} edits of {len(models)} models"
            )

    def __str__(self) -> str:
        return "\n".join(str(edit) for edit in self.edits)

    def __repr__(self) -> str:
        shown = ", ".join(edit.label.removeprefix("edit ") for edit in self.edits[:3]) + ", ..." * (len(self.edits) > 3)
        return f"<sequence of {len(self.edits)}, {describe_places(update.place for update in self.updates)}: {shown}>"

    @property
    def model(self) -> str:
        """Fingerprint of the model."""
        return self.edits[0].model

    @property
    def updates(self) -> tuple[Update, ...]:
        """All updates in order; a matrix may occur several times."""
        return tuple(update for edit in self.edits for update in edit.updates)

    @reliable
    def applied(self, model: HookedModel) -> Iterator[HookedModel]:
        """The model with every edit, for the length of a `with` block; the weights are back bit for bit afterwards.

        Where a matrix is packed, as in quantised models, it is edited by hooks, and weights stay as they are.

        Raises:
            ModelMismatchError: If the edits are for another model.
            EditStateError: If one is applied already, or the weights were changed by others inside the block.
        """
        with lent(model):
            if hooks_reason(model, [update.place for update in self.updates]):
                check_fingerprint(model, self.model, "this sequence of edits")
                check_weights(model, [self.edits])
                with ExitStack() as stack:
                    for edit in self.edits:
                        stack.enter_context(updates_applied(model, edit.updates))
                    yield model
                return
            self.apply(model)
            try:
                yield model
            finally:
                self.undo(model)

    def apply(self, model: HookedModel) -> None:
        """Write all edits into the model's weights, or none.

        Raises:
            UnsupportedModelError: If the model is quantised, so that its weights cannot be written; `applied` and
                `edited_rows` run edits on such models.
            ModelMismatchError: If the edits are for another model, or one was made neither on the weights as they are
                nor on top of those before it.
            EditStateError: If one is applied already, or occurs twice.
            NumericsError: If the new weights would not be finite in the model's dtype.
        """
        with lent(model):
            with suppress(InputError):  # a quantised copy has another fingerprint too, which says less
                check_writable(model, [update.place for update in self.updates])
            check_fingerprint(model, self.model, "this sequence of edits")
            check_weights(model, [self.edits])
            _all_or_none(model, self.edits, WeightEdit.apply_unchecked, WeightEdit.undo)

    def undo(self, model: HookedModel) -> None:
        """Take all edits back, or none.

        Raises:
            EditStateError: If one is not applied, or weights have been changed since.
        """
        with lent(model):
            _all_or_none(model, self.edits[::-1], WeightEdit.undo, WeightEdit.apply_unchecked)

    def save(self, path: str | Path) -> Path:
        """Write one small safetensors file.

        Raises:
            StorageError: If the file cannot be written.
        """
        tensors, headers = {}, []
        for index, edit in enumerate(self.edits):
            parts, header = edit.to_file()
            tensors |= {f"{index}.{name}": part for name, part in parts.items()}
            headers.append(header)
        return save(path, SEQUENCE_KIND, tensors, {"edits": headers})

    @classmethod
    def load(cls, path: str | Path, model: HookedModel | None = None) -> "EditSequence":
        """Read a sequence that `save` wrote.

        Args:
            path: The file, or `hf://owner/name/file` for one that is shared on the model hub.
            model: If given, the edits are checked to belong to it at once, otherwise when they are applied.

        Raises:
            StorageError: If the file is damaged, holds something else, or cannot be fetched.
            ModelMismatchError: If the edits are for another model.
        """
        tensors, header = load(local_path(path), SEQUENCE_KIND)
        with reading(path, "a sequence of edits"):
            headers = read_as(tuple[dict[str, Any], ...], header["edits"], "edits")
            parts: list[dict[str, Tensor]] = [{} for _ in headers]
            for name, tensor in tensors.items():
                index, _, rest = name.partition(".")
                parts[int(index)][rest] = tensor
            pairs = zip(parts, headers, strict=True)
            found = cls(tuple(_class_of(head).from_file(part, head, path) for part, head in pairs))
        if model is not None:
            check_fingerprint(model, found.model, str(path))
        return found


def _class_of(header: Mapping[str, Any]) -> type[Edit] | type[BatchEdit]:
    return BatchEdit if "requests" in header else Edit


@uninterrupted
def _all_or_none(model: HookedModel, edits: Sequence[Edit | BatchEdit], do: _Step, undo: _Step) -> None:
    """Take a step with each edit; where one fails, those before it are taken back."""
    done: list[Edit | BatchEdit] = []
    try:
        for edit in edits:
            do(edit, model)
            done.append(edit)
    except BaseException:
        for edit in reversed(done):
            undo(edit, model)
        raise


def compose(edits: Iterable[Edit | BatchEdit]) -> EditSequence:
    """Several edits as one.

    Applying them in the order in which they were made, each on top of those before, gives the weights that they were
    made for bit for bit. Edits of one layer that were each made on the unedited model add up, and their keys disturb
    each other a little.

    Args:
        edits: First to last; no edit twice.

    Raises:
        InputError: If there is none, or they are for different models.
    """
    return EditSequence(tuple(edits))
