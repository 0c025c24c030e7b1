"""The edits of batch after batch, each made on the model with those before it, and kept in a store.

    <store>/edits/<first>-<last>.safetensors    the edit of these records, counted from 0
    <store>/keys/<facts>.safetensors            the key memory that goes with so many facts, until the next is kept

A memory is written before its edit: whatever ends a run, the edits that are kept have theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tl_rome.counterfact.evaluation.guard import WeightGuard
from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.edits.virtual import AnyEdit
from tl_rome.editors.mass.editor import MassEditor
from tl_rome.editors.mass.memory import KeyMemory
from tl_rome.editors.protocol import Editor
from tl_rome.facts import EditRequest
from tl_rome.sites import HookedModel


@dataclass
class Batches:
    """Makes the edits of one series of batches, in order, or reads them."""

    model: HookedModel
    """With all edits so far."""
    editor: Editor
    name: str
    guard: WeightGuard
    store: Path | None
    remember: bool
    """Whether a mass editor with a key memory is given that of the batches before."""
    progress: bool
    _facts: int = 0
    """Whose edits have been given out."""
    _memory: KeyMemory | None = None
    """That goes with them; None where it is to be read."""

    def edit_of(self, batch: range, requests: Sequence[EditRequest]) -> EditSequence:
        """The edit of a batch, to be written before the next is asked for.

        Args:
            batch: Indices of its records.
            requests: One, unless the editor is a mass editor.

        Raises:
            TLRomeError: As the editor does; the batches before are as they were.
            StorageError: If a file is damaged or cannot be written.
        """
        file = None if self.store is None else self.store / "edits" / f"{batch[0]}-{batch[-1]}.safetensors"
        if file is not None and file.exists():
            edit, self._memory = EditSequence.load(file, self.model), None
            self._facts += len(batch)
            return edit
        made, memory = self._made(requests)
        edit = made if isinstance(made, EditSequence) else EditSequence((made,))
        before, self._facts, self._memory = self._keys, self._facts + len(batch), memory
        if file is not None:
            if memory is not None:
                assert self._keys is not None
                memory.save(self._keys)
            edit.save(file)
            if before is not None:
                before.unlink(missing_ok=True)
        return edit

    def _made(self, requests: Sequence[EditRequest]) -> tuple[AnyEdit, KeyMemory | None]:
        """The edit, and the memory that goes with it if one is kept."""
        editor = self.editor
        if not isinstance(editor, MassEditor):
            [made] = self.guard.make_edits(requests, editor, self.name)
            return made, None
        with self.guard.watching(self.name) as edits:
            if self.remember and editor.config.memory:
                made, memory = editor(self.model, requests, memory=self._known(editor), progress=self.progress)
            else:
                made, memory = editor(self.model, requests, progress=self.progress), None
            edits.append(made)
        return made, memory

    def _known(self, editor: MassEditor) -> KeyMemory:
        """The memory of the batches so far."""
        if self._memory is None and not self._facts:
            return KeyMemory.empty(self.model, editor.layers)
        if self._memory is None:
            assert self._keys is not None, "edits are read from a store alone"
            self._memory = KeyMemory.load(self._keys, self.model)
        return self._memory

    @property
    def _keys(self) -> Path | None:
        return None if self.store is None else self.store / "keys" / f"{self._facts}.safetensors"
