"""Whether edits are put on the weights that they were made on, by digests of the matrices that they change.

The fingerprint of a model leaves MLPs out, so that an edited model still has it. So each edit keeps digests of its
matrices without and with it: one that is applied again to a copy of an edited model, or to an export of one, is
noticed.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.edits.update import Update, check_shape, with_updates
from tl_rome.errors import EditStateError, ModelMismatchError
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import check_matrix, digest_with, packed_matrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest


@runtime_checkable
class Digested(Protocol):
    """An edit, as far as its weights are concerned."""

    @property
    def updates(self) -> tuple[Update, ...]:
        """At most one per matrix."""
        ...

    @property
    def digests(self) -> Mapping[MlpMatrix, tuple[str, str]]:
        """For each matrix `weight_digest` without the edit and with it."""
        ...

    @property
    def label(self) -> str:
        """Its name in messages."""
        ...


def weight_digest(model: HookedModel, place: MlpMatrix) -> str:
    """16 hexadecimal digits of every bit of a matrix as it is stored, the same in both classes and on all devices."""
    packed = packed_matrix(model, place)
    return _digest(place.weight(model).detach()) if packed is None else packed.digest


def edited_digest(model: HookedModel, update: Update, unedited: str) -> str:
    """`weight_digest` with an update that the model has; of a packed matrix, which stays as it is, that of both.

    Args:
        model: Where it is in, see `updates_applied`.
        update: The update.
        unedited: `weight_digest` without it.
    """
    if packed_matrix(model, update.place) is None:
        return weight_digest(model, update.place)
    return digest_with(unedited, update_digest(update))


def update_digest(update: Update) -> str:
    """16 hexadecimal digits of every bit of an update."""
    return digest([_digest(tensor) for _, tensor in sorted(update.tensors.items())])


def _digest(weight: Float[Tensor, "d_in d_out"]) -> str:
    return hashlib.sha256(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()[:16]


def check_weights(model: HookedModel, sequences: Iterable[Sequence[Digested]]) -> None:
    """Refuse edits of other weights than the model has. Edits without digests, of older files, need fit in shape only.

    Within a sequence an edit may have been made on the model as it is, or on top of those before it.

    Args:
        model: Only looked at; a digest of each edited matrix is taken once.
        sequences: Edits that are to be put on the model as it is, each sequence by itself.

    Raises:
        EditStateError: If an edit is in the weights already, or occurs twice in a sequence.
        ModelMismatchError: If an edit was made on other weights, or is of another shape.
    """
    sequences = list(sequences)
    for update in (update for edits in sequences for edit in edits for update in edit.updates):
        check_shape(update, check_matrix(model, update.place))
    found: dict[MlpMatrix, str] = {}
    for edits in sequences:
        for place in sorted({place for edit in edits for place in edit.digests}):
            if place not in found:
                found[place] = weight_digest(model, place)
            _check_matrix(model, place, found[place], edits)


def _check_matrix(model: HookedModel, place: MlpMatrix, found: str, edits: Sequence[Digested]) -> None:
    known, seen = {found}, set()
    for index, edit in enumerate(edits):
        if place not in edit.digests:
            continue
        before, after = edit.digests[place]
        packed = packed_matrix(model, place)
        if before not in known and (packed or before != _digest(_with(model, place, edits[:index]))):
            if any(found == other.digests.get(place, ("", ""))[1] for other in edits):
                raise EditStateError(
                    f"{edit.label} is already applied: {place} is as that edit leaves it; "
                    "load the unedited model, or go on without applying it"
                )
            if packed is not None:
                raise ModelMismatchError(
                    f"{edit.label} was made on other weights: {packed}; make it on this model, or run it as it is, "
                    "whose receipt is of the other weights then: edited_rows(model, [edit], same_weights=False)"
                )
            raise ModelMismatchError(
                f"{edit.label} was made on other weights: {place} has digest {found}, it had {before}; "
                "apply the edits that were in the model when it was made, and no others of this matrix, or put edits "
                "of one model together with compose([...])"
            )
        if (before, after) in seen and before != after:
            raise EditStateError(f"{edit.label} occurs twice in this sequence; leave one of them out")
        seen.add((before, after))
        known.add(after)


def _with(model: HookedModel, place: MlpMatrix, edits: Sequence[Digested]) -> Float[Tensor, "d_in d_out"]:
    """A matrix with some edits, as applying them one after another gives it."""
    updates = (update for edit in edits for update in edit.updates if update.place == place)
    return with_updates(place.weight(model).detach(), updates)
