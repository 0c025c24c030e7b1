"""Edits in a model, one on top of the other, all of which are out again at the end."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.running.interrupts import reliable
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel


class Written:
    """A model and what its matrices were before the first edit of each; only these are kept, however many there are."""

    def __init__(self, model: HookedModel) -> None:
        self._model = model
        self._first: dict[MlpMatrix, Tensor] = {}

    def write(self, edit: EditSequence) -> None:
        """Apply an edit on top of those before it.

        Raises:
            TLRomeError: As `EditSequence.apply` does.
        """
        for place in {update.place for update in edit.updates} - self._first.keys():
            self._first[place] = place.weight(self._model).detach().clone()
        # A copy, which forgets what it replaced: the edit given is not applied once the weights are back.
        EditSequence(tuple(replace(part) for part in edit.edits)).apply(self._model)

    @property
    def growth(self) -> float:
        """||Delta|| / ||W|| of the matrix that has changed most, Frobenius norms; 0 without edits."""
        pairs = ((place.weight(self._model).detach(), first) for place, first in self._first.items())
        return max((float((now - first).double().norm() / first.double().norm()) for now, first in pairs), default=0.0)

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore all weights bit for bit."""
        for place, weight in self._first.items():
            place.weight(self._model).copy_(weight)


@reliable
def restored(model: HookedModel) -> Iterator[Written]:
    """Yields what writes edits into a model; at the end all weights are restored bit for bit."""
    written = Written(model)
    try:
        yield written
    finally:
        written.put_back()
