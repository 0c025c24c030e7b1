"""A guard of the unedited weights: editors return edits, and none of these may be left in the model.

Were one left, all later figures would be of another model. So the matrices of all MLPs are compared after every call,
by the same samples of them as a store compares; a change is taken back, and ends the run.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.edits.virtual import AnyEdit
from tl_rome.editors.protocol import Editor, make_edits
from tl_rome.errors import EditStateError
from tl_rome.facts import EditRequest
from tl_rome.running.interrupts import reliable, uninterrupted
from tl_rome.running.matrices import MlpMatrix, editable_matrices
from tl_rome.sites import HookedModel
from tl_rome.storage.ledger import edited_weights
from tl_rome.storage.text import visible


class WeightGuard:
    """Calls editors, and sees to it that the matrices of all MLPs are afterwards as they were before.

    Args:
        model: As it is now, it is put back after an editor that changed it.
        editors: Those that will be called. If all are this package's own, which write to weights only by way of
            edits that can be undone, no copy is kept; otherwise there is one of every such matrix, on the CPU.
    """

    def __init__(self, model: HookedModel, editors: Iterable[Editor]) -> None:
        self.model = model
        own = all(type(editor).__module__.startswith("tl_rome.") for editor in editors)
        self._copies = {} if own else _copies(model)
        self._first = edited_weights(self.model)

    def make_edits(self, requests: Sequence[EditRequest], editor: Editor, name: str) -> list[AnyEdit]:
        """See `tl_rome.editors.protocol.make_edits`.

        Args:
            requests: What to write.
            editor: Called for them.
            name: The editor's, for the message.

        Raises:
            EditStateError: If the editor left a matrix changed; the weights are put back before.
            TypeError: If the editor does not return one edit per request.
            TLRomeError: As the editor does.
        """
        with self.watching(name) as edits:
            edits += make_edits(self.model, requests, editor)
        return edits

    @reliable
    def watching(self, name: str) -> Iterator[list[AnyEdit]]:
        """The same for a block that calls an editor itself, and puts what it makes into the list.

        Raises:
            EditStateError: If the block left a matrix changed; the weights are put back before.
        """
        before, edits = edited_weights(self.model), list[AnyEdit]()
        try:
            yield edits
        except Exception as error:
            self._check(before, edits, name, error)
            raise
        except BaseException:
            self._put_back(before, edits)
            raise
        self._check(before, edits, name, None)

    def _check(self, before: str, edits: Sequence[AnyEdit], name: str, error: Exception | None) -> None:
        if edited_weights(self.model) == before:
            return
        put_back = self._put_back(before, edits)
        after = "the weights are put back" if put_back else "what they were is not known: load the model anew"
        raise EditStateError(
            f"the editor {visible(name)!r} left the model's weights changed; {after}. An editor returns its edit, and "
            "applies it to the model for the length of `with edit.applied(model):` at most"
        ) from error

    @uninterrupted
    def _put_back(self, before: str, edits: Sequence[AnyEdit]) -> bool:
        """Undo edits that are still applied, then write the copies; whether that gave weights that are known."""
        parts = [part for edit in edits for part in (edit.edits if isinstance(edit, EditSequence) else (edit,))]
        for edit in reversed(parts):
            with suppress(EditStateError):  # not applied; or a matrix was changed after it, and is written below
                edit.undo(self.model)
        with torch.no_grad():
            for place, kept in self._copies.items():
                place.weight(self.model).copy_(kept)
        return edited_weights(self.model) in (before, self._first)


def _copies(model: HookedModel) -> dict[MlpMatrix, Tensor]:
    return {place: weight.detach().to("cpu", copy=True) for place, weight in editable_matrices(model).items()}
