"""A guard of the unedited weights: editors return edits, and none of these may be left in the model.

Were one left, all later figures would be of another model. So W_out is compared after every call, by the same samples
of it as a store compares; a change is taken back, and ends the run.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.edits.virtual import AnyEdit
from tl_rome.editors.protocol import Editor, make_edits
from tl_rome.errors import EditStateError, UnsupportedModelError
from tl_rome.facts import EditRequest
from tl_rome.sites import HookedModel, w_out
from tl_rome.storage.ledger import edited_weights
from tl_rome.storage.text import visible


class WeightGuard:
    """Calls editors, and sees to it that W_out is afterwards as it was before.

    Args:
        model: As it is now, it is put back after an editor that changed it.
        editors: Those that will be called. If all are this package's own, which write to W_out only by way of edits
            that can be undone, no copy is kept; otherwise there is one of every W_out, on the CPU.
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
            EditStateError: If the editor left W_out changed; the weights are put back before.
            TypeError: If the editor does not return one edit per request.
            TLRomeError: As the editor does.
        """
        before, edits = edited_weights(self.model), []
        try:
            edits = make_edits(self.model, requests, editor)
        except Exception as error:
            self._check(before, edits, name, error)
            raise
        except BaseException:
            self._put_back(before, edits)
            raise
        self._check(before, edits, name, None)
        return edits

    def _check(self, before: str, edits: Sequence[AnyEdit], name: str, error: Exception | None) -> None:
        if edited_weights(self.model) == before:
            return
        put_back = self._put_back(before, edits)
        after = "the weights are put back" if put_back else "what they were is not known: load the model anew"
        raise EditStateError(
            f"the editor {visible(name)!r} left the model's W_out changed; {after}. An editor returns its edit, and "
            "applies it to the model for the length of `with edit.applied(model):` at most"
        ) from error

    def _put_back(self, before: str, edits: Sequence[AnyEdit]) -> bool:
        """Undo edits that are still applied, then write the copies; whether that gave weights that are known."""
        parts = [part for edit in edits for part in (edit.edits if isinstance(edit, EditSequence) else (edit,))]
        for edit in reversed(parts):
            with suppress(EditStateError):  # not applied; or W_out was changed after it, and is written below
                edit.undo(self.model)
        with torch.no_grad():
            for layer, kept in self._copies.items():
                w_out(self.model, layer).copy_(kept)
        return edited_weights(self.model) in (before, self._first)


def _copies(model: HookedModel) -> dict[int, Tensor]:
    """W_out of every layer that has one."""
    found = {}
    for layer in range(model.cfg.n_layers):
        try:
            found[layer] = w_out(model, layer).detach().to("cpu", copy=True)
        except UnsupportedModelError:
            continue
    return found
