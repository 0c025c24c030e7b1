"""The result of editing many facts into one model, as a table and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_rome.counterfact.experiments.curve import Curve
from tl_rome.errors import StorageError
from tl_rome.grid import Grid


@dataclass(frozen=True)
class SequentialResult:
    """One editor's figures as facts are added to one model."""

    curve: Curve
    """Scores of all facts so far, by their number."""
    text_nll: tuple[float, ...]
    """Mean token NLL of plain sentences in nats: in the unedited model, then at each number."""
    text_entropy: tuple[float, ...]
    """Entropy of the next token in them in nats, likewise."""
    failed: Mapping[int, str]
    """Edits that could not be made, by case_id, with the reason; these facts are scored all the same."""

    def grid(self) -> Grid:
        """The figures as a table, the unedited model first."""
        grid = self.curve.grid()
        texts = zip(grid.rows, self.text_nll, self.text_entropy, strict=True)
        rows = tuple((*cells, f"{nll:.2f}", f"{entropy:.2f}") for cells, nll, entropy in texts)
        caption = f"{grid.caption}; text NLL and entropy in nats, of plain sentences"
        if self.failed:
            caption += f"; {len(self.failed)} edits could not be made"
        return Grid(caption, (*grid.header, "text NLL", "entropy"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "curve": self.curve.to_dict(),
            "text_nll": list(self.text_nll),
            "text_entropy": list(self.text_entropy),
            "failed": {str(case): reason for case, reason in self.failed.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SequentialResult":
        """Read what `to_dict` wrote.

        Raises:
            StorageError: If a part is missing.
        """
        try:
            nll, entropy = (tuple(data[name]) for name in ("text_nll", "text_entropy"))
            failed = {int(case): reason for case, reason in data["failed"].items()}
            return cls(Curve.from_dict(data["curve"]), nll, entropy, failed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"a stored result is damaged ({error!r}); make it again") from error
