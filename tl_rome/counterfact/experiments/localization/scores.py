"""How well an edit did on a scale that regressions can use: probabilities before and after, not who is ahead.

The scores are those of Hase et al. (2023, arXiv 2301.04213; `experiments/evaluate.py` of their code), with P the
probability of o*. Rewrite and paraphrase scores are the share of the possible rise that the edit brought,
max(0, (P' - P) / (1 - P)): 1 is certainty, 0 no rise. The neighbourhood score is 1 minus the move over the largest
possible, |P' - P| / max(P, 1 - P): 1 is no move. The overall score is their harmonic mean, 0 where one of them is.
Their code looks at the first paraphrase and the first neighbourhood prompt; here it is the mean over all of a record's.
"""

import math
from collections.abc import Callable, Iterable

from tl_rome.counterfact.metrics.prompts import mean
from tl_rome.counterfact.results import Conventions, Measurement, PromptScores

SCORES = ("rewrite", "paraphrase", "neighborhood", "overall")
"""The edit scores, in the order in which a report keeps them."""


def edit_scores(before: Measurement, after: Measurement, conventions: Conventions) -> tuple[float, ...]:
    """The scores of one edit, in the order of `SCORES`; NaN, and not part of the overall one, without such prompts.

    Args:
        before: The unedited model on a record.
        after: The edited one on the same.
        conventions: Whose probability of an object of several tokens, see `PromptScores.loss`.
    """

    def over(old: PromptScores, new: PromptScores, score: Callable[[float, float], float]) -> float:
        pairs = zip(old.loss("new", conventions), new.loss("new", conventions), strict=True)
        return mean([score(math.exp(-first), math.exp(-second)) for first, second in pairs])

    found = (
        over(before.rewrite, after.rewrite, _risen),
        over(before.paraphrase, after.paraphrase, _risen),
        over(before.neighborhood, after.neighborhood, _unmoved),
    )
    return (*found, _harmonic_mean(score for score in found if not math.isnan(score)))


def _risen(before: float, after: float) -> float:
    return max(0.0, (after - before) / (1 - before)) if before < 1 else 0.0


def _unmoved(before: float, after: float) -> float:
    return 1 - abs(after - before) / max(before, 1 - before)


def _harmonic_mean(scores: Iterable[float]) -> float:
    measured = list(scores)
    return len(measured) / sum(1 / score for score in measured) if min(measured) > 0 else 0.0
