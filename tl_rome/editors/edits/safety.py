"""Signs that an edit disables the model rather than changing one fact.

Gupta et al. (2024, arXiv 2403.07175) found that single ROME edits can ruin a model, when the key in the divisor points
away from the key that u was solved for: the divisor is then small and the update huge. What C says of the two keys
shows it before any text is run; a few plain sentences show it afterwards.

The limits lie well outside what 120 sound edits of SmolLM2-135M showed, presets and contexts mixed: a divisor of 0.25
to 1 of the predicted one, a disturbance of 0.05 to 0.2, and sentences dearer by at most 0.1 nats.
"""

import logging
import math
from dataclasses import replace

from tl_rome.editors.edits.outcome import Outcome
from tl_rome.editors.edits.receipt import Receipt

MIN_DIVISOR_RATIO = 0.1
"""Below this the update is more than ten times larger than one key in both places would make it."""
MAX_DISTURBANCE = 0.5
"""Above this the edit changes the layer's output on ordinary text by more than half its size."""
MAX_NLL_RISE = 0.5
"""Nats per token that plain sentences may become less likely."""
MIN_ENTROPY_SHARE = 0.5
"""Below this share of what it was, the entropy of the next token in plain sentences has collapsed."""

_log = logging.getLogger(__name__)


def with_outcome(receipt: Receipt, before: Outcome, after: Outcome) -> Receipt:
    """The receipt with what was measured, and with warnings, which are logged too.

    Args:
        receipt: Of the edit.
        before: What the model said before it.
        after: What it says with the edit applied.
    """
    probs = list(zip(before.probs, after.probs, strict=True))
    ranks = list(zip(before.ranks, after.ranks, strict=True))
    receipt = replace(
        receipt,
        prob_new=probs[0],
        prob_true=probs[1] if len(probs) > 1 else None,
        rank_new=ranks[0],
        rank_true=ranks[1] if len(ranks) > 1 else None,
        text_nll=(before.text_nll, after.text_nll),
        text_entropy=(before.text_entropy, after.text_entropy),
    )
    receipt = replace(receipt, warnings=find_warnings(receipt))
    for warning in receipt.warnings:
        _log.warning("the edit %r -> %r may disable the model: %s", receipt.prompt, receipt.target_new, warning)
    return receipt


def find_warnings(receipt: Receipt) -> tuple[str, ...]:
    """What in a receipt suggests damage, in words; empty for a sound edit."""
    found = []
    if receipt.divisor_ratio is not None and not receipt.divisor_ratio >= MIN_DIVISOR_RATIO:
        found.append(
            f"the divisor is {receipt.divisor_ratio:.2f} of what the covariance predicts, at least "
            f"{MIN_DIVISOR_RATIO} is expected: the prompt's key points away from the averaged one; try preset 'r_rome'"
        )
    if receipt.disturbance is not None and not receipt.disturbance <= MAX_DISTURBANCE:
        found.append(
            f"the layer's output on ordinary text changes by {receipt.disturbance:.0%} of its size, at most "
            f"{MAX_DISTURBANCE:.0%} is expected; try preset 'r_rome', or a smaller clamp"
        )
    if receipt.text_nll is not None and not receipt.text_nll[1] - receipt.text_nll[0] <= MAX_NLL_RISE:
        found.append(
            f"plain sentences cost {receipt.text_nll[1]:.2f} nats per token, {receipt.text_nll[0]:.2f} before the edit"
        )
    if receipt.text_entropy is not None:
        before, after = receipt.text_entropy
        if math.isnan(after) or after < MIN_ENTROPY_SHARE * before:
            found.append(f"next-token entropy in plain sentences collapses from {before:.2f} to {after:.2f} nats")
    return tuple(found)
