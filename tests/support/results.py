"""Scores made by hand: each prompt is the pair of what o* and o^c cost, in nats per token of one-token targets."""

from collections.abc import Sequence
from typing import Any

from support.records import GAZI
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult, Measurement, PromptScores

REWRITE = CounterFactRecord.from_dict(GAZI).requested_rewrite


def scores(*pairs: tuple[float, float]) -> PromptScores:
    """Scores of prompts with targets of one token."""
    new, true = (tuple(-pair[i] for pair in pairs) for i in (0, 1))
    return PromptScores(new, true, (1,) * len(pairs), (1,) * len(pairs))


def measurement(es: bool, ps: Sequence[bool], ns: Sequence[bool], **more: Any) -> Measurement:
    """A measurement in which the named prompts succeed (o* costs 1 and o^c 2 nats, or the reverse) and others fail."""
    wins, fails = (1.0, 2.0), (2.0, 1.0)
    return Measurement(
        scores(wins if es else fails),
        scores(*(wins if hit else fails for hit in ps)),
        scores(*(fails if hit else wins for hit in ns)),
        **more,
    )


def case(number: int, after: Measurement | None, before: Measurement | None = None, **more: Any) -> CaseResult:
    """A result of record `number`."""
    named = {"editor": "rome", "config": "abcdef0123", "model": "m", "dataset": "d", **more}
    return CaseResult(case_id=number, rewrite=REWRITE, before=before, after=after, **named)
