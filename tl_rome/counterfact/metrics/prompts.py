"""Metrics of one group of scored prompts: success, magnitude, accuracy (section 3.3), and KL of next tokens.

A rewrite succeeds where o* is more likely than o^c, strictly; a neighbour where o^c is more likely than o*, strictly.
The draft compares probabilities of whole targets (its eq. 5); the released code compares means of token
log-probabilities, and its P is their exponential. Magnitudes and the score S are not in the draft. Values are shares
and probabilities in [0, 1], differences in [-1, 1]; NaN where there is no prompt. Mean over a record's prompts first,
then over records.
"""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tl_rome.counterfact.results import Conventions, PromptScores
from tl_rome.errors import InputError


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def rewrite_success(scores: PromptScores, conventions: Conventions = "released") -> float:
    """Share of prompts where o* is more likely than o^c: ES and PS."""
    pairs = zip(scores.loss("new", conventions), scores.loss("true", conventions), strict=True)
    return mean([float(new < true) for new, true in pairs])


def neighborhood_success(scores: PromptScores, conventions: Conventions = "released") -> float:
    """Share of prompts where o^c is more likely than o*: NS."""
    pairs = zip(scores.loss("new", conventions), scores.loss("true", conventions), strict=True)
    return mean([float(true < new) for new, true in pairs])


def rewrite_magnitude(scores: PromptScores, conventions: Conventions = "released") -> float:
    """Mean of P(o*) - P(o^c): EM and PM."""
    pairs = zip(scores.loss("new", conventions), scores.loss("true", conventions), strict=True)
    return mean([math.exp(-new) - math.exp(-true) for new, true in pairs])


def neighborhood_magnitude(scores: PromptScores, conventions: Conventions = "released") -> float:
    """Mean of P(o^c) - P(o*): NM."""
    return -rewrite_magnitude(scores, conventions)


def accuracy(argmax: Sequence[bool] | None) -> float:
    """Share of prompts after which every token of the target is the most likely one; NaN where not measured."""
    return mean([float(hit) for hit in argmax or ()])


def next_token_kl(
    before: Float[Tensor, "*rows d_vocab"], after: Float[Tensor, "*rows d_vocab"]
) -> Float[Tensor, "*rows"]:
    """KL(before || after) of next-token distributions, in nats; computed and returned in float64.

    NKL of Hoelscher-Obermaier et al. (2023), whose released code divides it by the size of the vocabulary.

    Args:
        before: Logits of the unedited model.
        after: Logits of the edited model after the same prompts.

    Raises:
        InputError: If there is a logit that is not finite.
    """
    found = relative_entropy(before, after)
    check_comparable(found)
    return found


def relative_entropy(
    before: Float[Tensor, "*rows d_vocab"], after: Float[Tensor, "*rows d_vocab"]
) -> Float[Tensor, "*rows"]:
    """As `next_token_kl`, on the logits' device where that has float64, and not finite where a logit is not."""
    if before.device.type == "mps":
        before, after = before.cpu(), after.cpu()
    old, new = (logits.double().log_softmax(dim=-1) for logits in (before, after))
    return (old.exp() * (old - new)).sum(dim=-1)


def check_comparable(kl: Float[Tensor, "*rows"]) -> None:
    """Refuse what `relative_entropy` gives of logits that are not finite.

    Raises:
        InputError: If there is one.
    """
    if not bool(kl.isfinite().all()):
        raise InputError("cannot compare logits that are not finite; the edit may have broken the model")
