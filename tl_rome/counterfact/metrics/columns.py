"""The figures of one record under one model: the columns of table 4 and others.

Rates, magnitudes, accuracies and RS are times 100, as every source prints them; GE is in bits in the draft, and times
100 in the published text and the released code. KL is in nats.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tl_rome.counterfact.dataset.references import ReferenceTexts
from tl_rome.counterfact.metrics.free import Judge, contains, is_exact, judged
from tl_rome.counterfact.metrics.prompts import (
    accuracy,
    mean,
    neighborhood_magnitude,
    neighborhood_success,
    rewrite_magnitude,
    rewrite_success,
)
from tl_rome.counterfact.metrics.texts import Words, generation_entropy, mention_rate, reference_score
from tl_rome.counterfact.records import RequestedRewrite
from tl_rome.counterfact.results import TOOK, AnswerScores, Conventions, Divergence, Measurement

SCORE = "S"
"""Harmonic mean of the averages of `RATES`; a figure of many records only."""
RATES = ("ES", "PS", "NS")

COLUMNS: Mapping[str, str] = {
    SCORE: "harmonic mean of ES, PS and NS",
    "ES": "o* more likely than o^c after the rewriting prompt, %",
    "EM": "P(o*) - P(o^c) there, points",
    "PS": "o* more likely than o^c after paraphrases, %",
    "PM": "P(o*) - P(o^c) there, points",
    "NS": "o^c more likely than o* after neighbourhood prompts, %",
    "NM": "P(o^c) - P(o*) there, points",
    "GE": "weighted 2- and 3-gram entropy of generations",
    "RS": "tf-idf cosine of generations and texts about entities with (r, o*), %",
    "says o*": "continuations of generation prompts that name o*, %",
    "says o^c": "continuations of generation prompts that name o^c, %",
    "took": "edits that took, as their receipts say, %",
    "EA": "every token of o* is the argmax after the rewriting prompt, %",
    "PA": "every token of o* is the argmax after paraphrases, %",
    "NA": "every token of o^c is the argmax after neighbourhood prompts, %",
    "free": "the model's own answer to the rewriting prompt names o*, %",
    "free P": "its own answers to paraphrases name o*, %",
    "exact": "its own answer to the rewriting prompt is o* and nothing else, %",
    "exact P": "the same of paraphrases, %",
    "judge": "the judge accepts its own answer to the rewriting prompt, %",
    "judge P": "the same of paraphrases, %",
    "ES-free": "ES minus free: success by teacher forcing that the model does not say, points",
    "PS-free": "PS minus free P, points",
    "EA-free": "EA minus free, points",
    "PA-free": "PA minus free P, points",
    "NS+": "NS with the rewrite stated before each prompt (CounterFact+), %",
    "NM+": "NM with the rewrite stated before each prompt (CounterFact+), points",
    "KL": "KL(before || after) of the next token after neighbourhood prompts, nats",
    "KL+": "the same after CounterFact+ prompts, nats",
    "drift": "the same after the subject and 'is a': essence drift, nats",
    "PPL": "perplexity of a text about the subject: the authors' essence score",
    "s/edit": "wall-clock seconds that an edit took, where several were made together their share",
}
"""Every column but those of a record's own groups, in the order of tables, with its meaning."""

PAPER_COLUMNS: Mapping[Conventions, tuple[str, ...]] = {
    "draft": ("ES", "PS", "NS", "GE", "RS"),
    "neurips": ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS"),
    "released": ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS"),
}
"""The columns that each source has."""

FREE_COLUMNS = (
    "ES",
    "EA",
    "free",
    "exact",
    "ES-free",
    "EA-free",
    "PS",
    "PA",
    "free P",
    "exact P",
    "PS-free",
    "PA-free",
)
"""Teacher-forced success beside what the model says by itself."""


_GROUP_COLUMNS = {
    "A": "every token of an answer is the argmax after the prompts of '{}', %",
    "P": "probability of the likeliest answer after them, points",
}
"""Columns of a record's own groups, named "A(group)" and "P(group)"."""


def meaning(column: str) -> str:
    """What a column says: one of `COLUMNS`, or one of a record's own groups."""
    return COLUMNS.get(column) or _GROUP_COLUMNS[column[0]].format(column[2:-1])


def group_columns(figures: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Columns of records' own groups among the names of their figures, in the order in which they occur."""
    return tuple(dict.fromkeys(name for each in figures for name in each if name[:2] in ("A(", "P(")))


def digits(column: str, conventions: Conventions) -> int:
    """Decimal places worth printing."""
    return 3 if column in ("KL", "KL+", "drift", "s/edit") else 2 if (column, conventions) == ("GE", "draft") else 1


@dataclass(frozen=True)
class RecordMetrics:
    """Computes the figures of one record from its raw scores and texts."""

    words: Words
    """Word tokenizer, for GE."""
    references: ReferenceTexts | None = None
    """Reference texts, for RS; NaN without."""
    conventions: Conventions = "released"
    """Whose conventions."""
    judge: Judge | None = None
    """Of the model's own answers; NaN without."""

    def compute(
        self,
        case: Measurement,
        rewrite: RequestedRewrite,
        moved: Divergence | None = None,
        verdict: str | None = None,
        seconds: float | None = None,
    ) -> dict[str, float]:
        """Figures of one record, by column but for S; NaN where something was not measured.

        Args:
            case: Scores and generations of one model.
            rewrite: What the record asks for.
            moved: Divergence from the unedited model; None for that model itself.
            verdict: See `CaseResult`.
            seconds: See there too.
        """
        took = {"took": math.nan if verdict is None else 100 * float(verdict == TOOK)}
        cost = {"s/edit": seconds or math.nan}
        drift = self._drift(case, moved)
        forced, said = self._probabilities(case), self._answers(case, rewrite)
        beside = {"ES": "free", "PS": "free P", "EA": "free", "PA": "free P"}
        gaps = {f"{name}-free": forced[name] - said[own] for name, own in beside.items()}
        named = self._groups(case.groups)
        return {**forced, **self._generations(case, rewrite), **said, **gaps, **took, **drift, **cost, **named}

    def _probabilities(self, case: Measurement) -> dict[str, float]:
        conventions, plus = self.conventions, case.neighborhood_plus
        figures = {
            "ES": rewrite_success(case.rewrite, conventions),
            "EM": rewrite_magnitude(case.rewrite, conventions),
            "PS": rewrite_success(case.paraphrase, conventions),
            "PM": rewrite_magnitude(case.paraphrase, conventions),
            "NS": neighborhood_success(case.neighborhood, conventions),
            "NM": neighborhood_magnitude(case.neighborhood, conventions),
            "EA": accuracy(case.rewrite.argmax_new),
            "PA": accuracy(case.paraphrase.argmax_new),
            "NA": accuracy(case.neighborhood.argmax_true),
            "NS+": neighborhood_success(plus, conventions) if plus else math.nan,
            "NM+": neighborhood_magnitude(plus, conventions) if plus else math.nan,
        }
        return {name: 100 * figure for name, figure in figures.items()}

    def _generations(self, case: Measurement, rewrite: RequestedRewrite) -> dict[str, float]:
        texts = [generation.text for generation in case.generations]
        continuations = [generation.continuation for generation in case.generations]
        score = math.nan
        if self.references is not None:
            score = reference_score(texts, rewrite, self.references)
        return {
            "GE": (1 if self.conventions == "draft" else 100) * generation_entropy(texts, self.words),
            "RS": 100 * score,
            "says o*": 100 * mention_rate(continuations, rewrite.target_new.str),
            "says o^c": 100 * mention_rate(continuations, rewrite.target_true.str),
        }

    def _answers(self, case: Measurement, rewrite: RequestedRewrite) -> dict[str, float]:
        """What the model says by itself, against o*."""
        target, figures = rewrite.target_new.str, {}
        for suffix, said in (("", case.free_rewrite), (" P", case.free_paraphrase)):
            texts = [each.continuation for each in said]
            figures[f"free{suffix}"] = mean([float(contains(text, target)) for text in texts])
            figures[f"exact{suffix}"] = mean([float(is_exact(text, target)) for text in texts])
            figures[f"judge{suffix}"] = math.nan if self.judge is None else judged(said, target, self.judge)
        return {name: 100 * figure for name, figure in figures.items()}

    def _groups(self, groups: Mapping[str, AnswerScores]) -> dict[str, float]:
        """Of each prompt's likeliest answer, by these conventions."""
        figures = {}
        for name, scores in groups.items():
            figures[f"A({name})"] = mean([float(any(hits)) for hits in scores.argmax])
            figures[f"P({name})"] = mean([math.exp(-min(losses)) for losses in scores.losses(self.conventions)])
        return {name: 100 * figure for name, figure in figures.items()}

    @staticmethod
    def _drift(case: Measurement, moved: Divergence | None) -> dict[str, float]:
        moved = moved or Divergence()
        return {
            "KL": mean(moved.neighborhood),
            "KL+": mean(moved.neighborhood_plus),
            "drift": math.nan if moved.essence is None else moved.essence,
            "PPL": math.nan if case.essence_nll is None else math.exp(case.essence_nll),
        }
