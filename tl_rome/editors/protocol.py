"""What an editor is: a callable that makes an `Edit` for a request and leaves the model as it found it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tl_rome.editors.edits.virtual import AnyEdit
from tl_rome.facts import EditRequest
from tl_rome.sites import HookedModel


@runtime_checkable
class Editor(Protocol):
    """Makes an edit for one request; a class, or any function with these arguments."""

    def __call__(self, model: HookedModel, request: EditRequest, /) -> AnyEdit:
        """Make an edit.

        Args:
            model: Unedited; left as found.
            request: The fact to write.
        """
        ...


@runtime_checkable
class BatchEditor(Protocol):
    """An editor that makes many edits at once, each in a model of its own."""

    def each(self, model: HookedModel, requests: Sequence[EditRequest], /) -> Sequence[AnyEdit]:
        """Make an edit for each request as if alone, in order."""
        ...


def make_edits(model: HookedModel, requests: Sequence[EditRequest], editor: Editor) -> list[AnyEdit]:
    """An edit for each request, made together where the editor can.

    Raises:
        TypeError: If the editor does not return one edit per request.
        TLRomeError: As the editor does.
    """
    if isinstance(editor, BatchEditor):
        edits = list(editor.each(model, requests))
    else:
        edits = [editor(model, request) for request in requests]
    if len(edits) != len(requests) or not all(isinstance(edit, AnyEdit) for edit in edits):
        classes = ", ".join(sorted({type(edit).__name__ for edit in edits}))
        raise TypeError(
            f"{editor!r} made {len(edits)} objects ({classes}) for {len(requests)} requests; return one Edit for each"
        )
    return edits
