"""The result of editing many facts into one model, one after another or at once, as a table and as JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_rome.counterfact.experiments.curve import CURVES, Curve
from tl_rome.counterfact.report.tables import Estimate
from tl_rome.errors import InputError, StorageError
from tl_rome.grid import Grid

FIRST = "first ES"
"""Column of the first batch."""
GROWTH = "|dW|/|W|"
"""Column of the change of the weights."""


@dataclass(frozen=True)
class SequentialResult:
    """One editor's figures by the number of facts in one model."""

    curve: Curve
    """Scores of all facts so far, by their number; as far as the model was not broken."""
    text_nll: tuple[float, ...]
    """Mean token NLL of plain sentences in nats: in the unedited model, then at each number."""
    text_entropy: tuple[float, ...]
    """Entropy of the next token in them in nats, likewise."""
    growth: tuple[float, ...]
    """||Delta|| / ||W|| of the matrix that has changed most, Frobenius norms, likewise."""
    failed: Mapping[int, str]
    """Edits that could not be made, by case_id, with the reason; these facts are scored all the same."""
    first: Curve | None = None
    """Scores of the facts of the first batch alone, likewise: how they are forgotten; None for batches of one fact."""
    stopped: str | None = None
    """Why larger numbers were left out, in words."""

    def figures(self, column: str) -> tuple[Estimate, ...]:
        """One column at each number, without the unedited model; intervals are NaN where it has none.

        Raises:
            InputError: If there is no such column.
        """
        plain = {"text NLL": self.text_nll, "entropy": self.text_entropy, GROWTH: self.growth}
        if column in plain:
            return tuple(Estimate(value, math.nan, math.nan, 1) for value in plain[column][1:])
        curve, score = (self.first, "ES") if column == FIRST else (self.curve, column)
        if curve is None or score not in CURVES:
            known = (*CURVES, *([] if self.first is None else [FIRST]), *plain)
            raise InputError(f"there is no column {column!r} of {self.curve.name!r}; choose among {', '.join(known)}")
        return tuple(row[score] for row in curve.rows)

    def grid(self) -> Grid:
        """The figures as a table, the unedited model first."""
        grid = self.curve.grid()
        columns = [(FIRST, [cells[-1] for cells in self.first.grid(["ES"]).rows])] if self.first is not None else []
        for name, values in (("text NLL", self.text_nll), ("entropy", self.text_entropy)):
            columns.append((name, [f"{value:.2f}" for value in values]))
        columns.append((GROWTH, [f"{value:.3f}" for value in self.growth]))
        names, cells = zip(*columns, strict=True)
        rows = tuple((*row, *more) for row, more in zip(grid.rows, zip(*cells, strict=True), strict=True))
        caption = f"{grid.caption}; text NLL and entropy in nats, of plain sentences"
        if self.first is not None:
            caption += f"; {FIRST} is ES of the first {self.first.unedited['ES'].n} facts"
        if self.failed:
            caption += f"; {len(self.failed)} edits could not be made"
        if self.stopped is not None:
            caption += f"; {self.stopped}"
        return Grid(caption, (*grid.header, *names), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "curve": self.curve.to_dict(),
            "text_nll": list(self.text_nll),
            "text_entropy": list(self.text_entropy),
            "growth": list(self.growth),
            "failed": {str(case): reason for case, reason in self.failed.items()},
            "first": None if self.first is None else self.first.to_dict(),
            "stopped": self.stopped,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SequentialResult":
        """Read what `to_dict` wrote.

        Raises:
            StorageError: If a part is missing.
        """
        try:
            nll, entropy, growth = (tuple(data[name]) for name in ("text_nll", "text_entropy", "growth"))
            failed = {int(case): reason for case, reason in data["failed"].items()}
            first = None if data["first"] is None else Curve.from_dict(data["first"])
            return cls(Curve.from_dict(data["curve"]), nll, entropy, growth, failed, first, data["stopped"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"a stored result is damaged ({error!r}); make it again") from error
