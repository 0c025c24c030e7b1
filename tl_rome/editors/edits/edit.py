"""An edit of one fact as a value: what it changes, where it came from, what it did."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

from torch import Tensor

from tl_rome.editors.edits.receipts.receipt import Receipt, describe_places
from tl_rome.editors.edits.update import Update
from tl_rome.editors.edits.weight_edit import WeightEdit
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import MlpMatrix


@dataclass(frozen=True, eq=False, repr=False)
class Edit(WeightEdit):
    """A finished edit. The model it was made on is as it was before; `applied` or `apply` puts the edit in.

    An `Edit` can be applied to any model with the fingerprint of the one it was made on, whatever its class.

    Raises:
        InputError: If two updates are of the same matrix.
    """

    kind: ClassVar[str] = "edit"
    asked: ClassVar[Mapping[str, Any]] = {"request": EditRequest, "receipt": Receipt}
    updates: tuple[Update, ...]
    """At most one per matrix of a layer."""
    request: EditRequest
    """What was asked for."""
    receipt: Receipt
    """What the edit did."""
    model: str
    """Fingerprint of the model."""
    provenance: Mapping[str, Any]
    """How it was made: editor settings, contexts, seed, BOS policy, covariance; JSON-serialisable."""
    digests: Mapping[MlpMatrix, tuple[str, str]] = field(default_factory=dict)
    """For each matrix `weight_digest` without the edit and with it; empty where they are unknown."""
    _undo: list[tuple[weakref.ref, dict[MlpMatrix, tuple[Tensor, Tensor]]]] = field(
        default_factory=list, init=False, repr=False
    )

    def __str__(self) -> str:
        return str(self.receipt)

    def __repr__(self) -> str:
        before, after = self.receipt.prob_new
        verdict = self.receipt.verdict or "unknown"
        return f"<{self.label}, {describe_places(self.places)}: P {before:.4f} → {after:.4f}, {verdict}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(x)}</td></tr>" for name, x in self.receipt.rows())
        return f"<table><caption>{escape(self.receipt.title)}</caption>{rows}</table>"

    @property
    def label(self) -> str:
        """What was asked for, for messages."""
        return f"edit {self.request.fact.prompt!r} -> {self.request.target_new!r}"
