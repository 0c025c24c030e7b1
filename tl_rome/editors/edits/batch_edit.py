"""An edit of many facts at once as a value: one update per layer, a receipt per fact and per layer."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from tl_rome.editors.edits.receipts.batch_receipt import BatchReceipt
from tl_rome.editors.edits.receipts.receipt import describe_places
from tl_rome.editors.edits.update import Update
from tl_rome.editors.edits.weight_edit import WeightEdit
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import MlpMatrix


@dataclass(frozen=True, eq=False, repr=False)
class BatchEdit(WeightEdit):
    """A finished edit of one or many facts, as mass editors make them; used as an `Edit` is.

    Raises:
        InputError: If two updates are of the same matrix.
    """

    kind: ClassVar[str] = "batch_edit"
    asked: ClassVar[Mapping[str, Any]] = {"requests": tuple[EditRequest, ...], "receipt": BatchReceipt}
    updates: tuple[Update, ...]
    """One per edited layer, of W_out."""
    requests: tuple[EditRequest, ...]
    """What was asked for."""
    receipt: BatchReceipt
    """What the edit did."""
    model: str
    """Fingerprint of the model."""
    provenance: Mapping[str, Any]
    """How it was made: editor settings, contexts, seed, BOS policy, statistics; JSON-serialisable."""
    digests: Mapping[MlpMatrix, tuple[str, str]] = field(default_factory=dict)
    """For each matrix `weight_digest` without the edit and with it."""
    _undo: list[tuple[weakref.ref, dict[MlpMatrix, tuple[Tensor, Tensor]]]] = field(
        default_factory=list, init=False, repr=False
    )

    def __str__(self) -> str:
        return str(self.receipt)

    def __repr__(self) -> str:
        places = describe_places(self.places)
        return f"<{self.label}, {places}: {self.receipt.took} of {len(self.requests)} took>"

    @property
    def label(self) -> str:
        """What was asked for, for messages."""
        first = self.requests[0]
        more = f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        return f"edit {first.fact.prompt!r} -> {first.target_new!r}{more}"
