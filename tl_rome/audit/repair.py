"""Taking changes out of a model, as a value that is applied, undone and saved as an edit is."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from tl_rome.editors.edits.update import Update
from tl_rome.editors.edits.weight_edit import WeightEdit
from tl_rome.editors.edits.weights import weight_digest
from tl_rome.editors.edits.written import updates_applied
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint


@dataclass(frozen=True, eq=False, repr=False)
class Repair(WeightEdit):
    """What takes known or suspected changes out of the audited model; it is applied and undone as an edit is.

    Raises:
        InputError: If two updates are of the same matrix.
    """

    kind: ClassVar[str] = "repair"
    asked: ClassVar[Mapping[str, Any]] = {}
    updates: tuple[Update, ...]
    """One for each matrix that is put right."""
    model: str
    """Fingerprint of the model."""
    provenance: Mapping[str, Any]
    """How it was found; JSON-serialisable."""
    digests: Mapping[MlpMatrix, tuple[str, str]] = field(default_factory=dict)
    """For each matrix `weight_digest` as audited and repaired."""
    _undo: list[tuple[weakref.ref, dict[MlpMatrix, tuple[Tensor, Tensor]]]] = field(
        default_factory=list, init=False, repr=False
    )

    def __repr__(self) -> str:
        return f"<{self.label}>"

    @property
    def label(self) -> str:
        """What it puts right, for messages."""
        return f"repair of {', '.join(map(str, self.places))}"


def repair_of(model: HookedModel, updates: Sequence[Update], provenance: Mapping[str, Any]) -> Repair:
    """The repair that makes some updates of a model, which is left as found."""
    places = [update.place for update in updates]
    before = {place: weight_digest(model, place) for place in places}
    with updates_applied(model, updates):
        digests = {place: (before[place], weight_digest(model, place)) for place in places}
    return Repair(tuple(updates), fingerprint(model), provenance, digests)
