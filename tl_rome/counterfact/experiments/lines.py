"""What is known of a model with some of the facts: a line for each number of them, 0 being the unedited model.

Beside the scores stand the NLL of plain sentences and the entropy of their next tokens, which reveal a broken model,
and how much the weights have changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tl_rome.counterfact.evaluation.measure import measure
from tl_rome.counterfact.experiments.sweep import SCORES_ONLY
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult
from tl_rome.editors.edits.receipts.outcome import probe_model
from tl_rome.sites import HookedModel
from tl_rome.storage.ledger import Ledger
from tl_rome.storage.parts import reading

FIELDS = {
    "count": int,
    "text_nll": float,
    "text_entropy": float,
    "growth": float,
    "failed": dict[str, str],
    "results": list,
}
"""What a line of the store has."""
Line = dict[str, Any]


def measured_line(
    model: HookedModel, records: Sequence[CounterFactRecord], count: int, growth: float, failed: Mapping[str, str]
) -> Line:
    """Measure a model as it stands.

    Args:
        model: With so many facts.
        records: What it is asked.
        count: How many.
        growth: See `Written`.
        failed: Reasons by case_id.

    Raises:
        NumericsError: If a score is not finite.
    """
    measured = measure(model, records, SCORES_ONLY)
    texts = probe_model(model, records[0].request)
    found = [
        CaseResult(
            case_id=record.case_id,
            rewrite=record.requested_rewrite,
            editor=str(count),
            config="",
            model="",
            dataset="",
            after=each.measurement,
        )
        for record, each in zip(records, measured, strict=True)
    ]
    figures = {"text_nll": texts.text_nll, "text_entropy": texts.text_entropy, "growth": growth}
    return {"count": count, **figures, "failed": dict(failed), "results": [result.to_dict() for result in found]}


@dataclass
class Lines:
    """Lines by number of facts, and the ledger that keeps them."""

    known: dict[int, Line] = field(default_factory=dict)
    ledger: Ledger | None = None

    def add(self, line: Line) -> None:
        """Keep one more.

        Raises:
            StorageError: If it cannot be written.
        """
        self.known[line["count"]] = line
        if self.ledger is not None:
            self.ledger.append(line)

    def broken(self, count: int, max_nll_rise: float | None) -> str | None:
        """Why the model with so many facts counts as broken, in words; None if it does not."""
        before, after = (self.known[each]["text_nll"] for each in (0, count))
        if max_nll_rise is None or after - before <= max_nll_rise:
            return None
        return (
            f"stopped after {count} facts: the NLL of plain sentences has risen from {before:.2f} to {after:.2f} nats, "
            f"by more than {max_nll_rise:g}, so the model is broken"
        )

    def cases(self, count: int) -> list[CaseResult]:
        """Results with so many facts, those of the unedited model as `before`.

        Raises:
            StorageError: If the line is damaged.
        """
        with reading("a store" if self.ledger is None else self.ledger.path, f"the scores of {count} facts"):
            pairs = zip(self.known[count]["results"], self.known[0]["results"][:count], strict=True)
            return [
                replace(CaseResult.from_dict(after), before=CaseResult.from_dict(before).after)
                for after, before in pairs
            ]
