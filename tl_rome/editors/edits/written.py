"""Updates on a model, for a time or for good: written into its weights, or by hooks where a matrix is packed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from tl_rome.editors.edits.stacked import StackedUpdates
from tl_rome.editors.edits.update import Update, with_updates
from tl_rome.editors.edits.weights import update_digest
from tl_rome.errors import EditStateError, NumericsError, UnsupportedModelError
from tl_rome.running.hooks import hooked
from tl_rome.running.interrupts import reliable
from tl_rome.running.loans import lent
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import packed_matrix
from tl_rome.sites import HookedModel

Changes = dict[MlpMatrix, tuple[Tensor, Tensor]]
"""Weights before and after."""


def hooks_reason(model: HookedModel, places: Iterable[MlpMatrix]) -> str | None:
    """Why changes of some matrices run as hooks, in words; None where all of them can be written.

    Raises:
        InputError: If a layer is out of range.
    """
    found = [packed for place in places if (packed := packed_matrix(model, place))]
    more = {0: "", 1: ", and one more matrix"}.get(len(found) - 1, f", and {len(found) - 1} more matrices")
    return f"{found[0]}{more}" if found else None


def check_writable(model: HookedModel, places: Iterable[MlpMatrix]) -> None:
    """Refuse to write into matrices that cannot be written.

    Raises:
        InputError: If a layer is out of range.
        UnsupportedModelError: If one is packed, or cannot be edited at all.
    """
    places = list(places)
    if (reason := hooks_reason(model, places)) is not None:
        raise UnsupportedModelError(
            f"{reason}, so nothing can be written into it; an edit that was made on this model runs by hooks, in "
            "`with edit.applied(model)` or edited_rows(model, [edit]), and one that was made on the model without "
            "quantisation in edited_rows(model, [edit], same_weights=False)"
        )
    for place in places:
        place.weight(model)


@reliable
def updates_applied(model: HookedModel, updates: Iterable[Update]) -> Iterator[HookedModel]:
    """The model with updates of different matrices, for the length of a `with` block, as `Edit.applied` gives it.

    Where a matrix is packed its update is added to the output of every row by hooks.

    Raises:
        NumericsError: If the new weights would not be finite in the model's dtype.
    """
    updates = list(updates)
    packed = [(found, update) for update in updates if (found := packed_matrix(model, update.place))]
    stacked = [(update.place, StackedUpdates.of(model, update.place, [[update]])) for _, update in packed]
    hooks = [hook for place, each in stacked for hook in each.hooks(model, place)]
    with lent(model), hooked(model, hooks), ExitStack() as stack:
        for found, update in packed:
            stack.enter_context(found.adding(update_digest(update)))
        changes = changes_of(model, [update for update in updates if not packed_matrix(model, update.place)])
        try:
            write(model, {place: after for place, (_, after) in changes.items()})
            yield model
        finally:
            write(model, {place: before for place, (before, _) in changes.items()})


def changes_of(model: HookedModel, updates: Iterable[Update]) -> Changes:
    """The matrices of updates without and with them.

    Raises:
        NumericsError: If new weights would not be finite in the model's dtype.
    """
    changes: Changes = {}
    for update in updates:
        before = update.place.weight(model).detach().clone()
        after = with_updates(before, [update])
        if not bool(after.isfinite().all()):
            raise NumericsError(f"the edited {update.place} is not finite in {before.dtype}")
        changes[update.place] = before, after
    return changes


def write(model: HookedModel, weights: Mapping[MlpMatrix, Tensor]) -> None:
    """Write matrices, in place.

    Raises:
        EditStateError: If the model does not take one.
    """
    with torch.no_grad():
        for place, weight in weights.items():
            place.weight(model).copy_(weight)
            if not torch.equal(place.weight(model), weight):
                raise EditStateError(f"{place} does not keep what is written to it; load the model anew")
