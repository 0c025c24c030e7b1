"""Whether edits are put on the weights that they were made on, by digests of W_out.

The fingerprint of a model leaves W_out out, so that an edited model still has it. So each edit keeps a digest of W_out
without and with it: one that is applied again to a copy of an edited model, or to an export of one, is noticed.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.edits.update import Update, check_shape
from tl_rome.errors import EditStateError, ModelMismatchError
from tl_rome.sites import HookedModel, w_out


@runtime_checkable
class Digested(Protocol):
    """An edit, as far as its weights are concerned."""

    @property
    def updates(self) -> tuple[Update, ...]:
        """At most one per layer."""
        ...

    @property
    def digests(self) -> Mapping[int, tuple[str, str]]:
        """For each layer `weight_digest` without the edit and with it."""
        ...

    @property
    def label(self) -> str:
        """Its name in messages."""
        ...


def weight_digest(model: HookedModel, layer: int) -> str:
    """16 hexadecimal digits of every bit of a layer's W_out, the same in both classes and on all devices."""
    return _digest(w_out(model, layer).detach())


def _digest(weight: Float[Tensor, "d_mlp d_model"]) -> str:
    return hashlib.sha256(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def check_weights(model: HookedModel, sequences: Iterable[Sequence[Digested]]) -> None:
    """Refuse edits of other weights than the model has. Edits without digests, of older files, need fit in shape only.

    Within a sequence an edit may have been made on the model as it is, or on top of those before it.

    Args:
        model: Only looked at; a digest of each edited layer is taken once.
        sequences: Edits that are to be put on the model as it is, each sequence by itself.

    Raises:
        EditStateError: If an edit is in the weights already, or occurs twice in a sequence.
        ModelMismatchError: If an edit was made on other weights, or is of another shape.
    """
    sequences = list(sequences)
    for update in (update for edits in sequences for edit in edits for update in edit.updates):
        check_shape(update, w_out(model, update.layer))
    found: dict[int, str] = {}
    for edits in sequences:
        for layer in sorted({layer for edit in edits for layer in edit.digests}):
            if layer not in found:
                found[layer] = weight_digest(model, layer)
            _check_layer(model, layer, found[layer], edits)


def _check_layer(model: HookedModel, layer: int, found: str, edits: Sequence[Digested]) -> None:
    known, seen = {found}, set()
    for place, edit in enumerate(edits):
        if layer not in edit.digests:
            continue
        before, after = edit.digests[layer]
        if before not in known and before != _digest(_with(model, layer, edits[:place])):
            if any(found == other.digests.get(layer, ("", ""))[1] for other in edits):
                raise EditStateError(
                    f"{edit.label} is already applied: W_out of layer {layer} is as that edit leaves it; "
                    "load the unedited model, or go on without applying it"
                )
            raise ModelMismatchError(
                f"{edit.label} was made on other weights: W_out of layer {layer} has digest {found}, it had {before}; "
                "apply the edits that were in the model when it was made, and no others of this layer, or put edits "
                "of one model together with compose([...])"
            )
        if (before, after) in seen and before != after:
            raise EditStateError(f"{edit.label} occurs twice in this sequence; leave one of them out")
        seen.add((before, after))
        known.add(after)


def _with(model: HookedModel, layer: int, edits: Sequence[Digested]) -> Float[Tensor, "d_mlp d_model"]:
    """W_out with some edits, as applying them one after another gives it."""
    weight = w_out(model, layer).detach()
    for update in (update for edit in edits for update in edit.updates if update.layer == layer):
        weight = (weight.double() + update.delta.to(weight.device)).to(weight.dtype)
    return weight
