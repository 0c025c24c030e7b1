"""Signs that an edit disables the model rather than changing one fact.

Gupta et al. (2024, arXiv 2403.07175) found that single ROME edits can ruin a model, when the key in the divisor points
away from the key that u was solved for: the divisor is then small and the update huge. What C says of the two keys
shows it before any text is run; a few plain sentences show it afterwards.

The limits lie well outside what 120 sound edits of SmolLM2-135M showed, presets and contexts mixed: a divisor of 0.25
to 1 of the predicted one, a disturbance of 0.05 to 0.2, and a rise of the sentences' NLL by at most 0.1 nats per token.
"""

from tl_rome.editors.edits.receipts.outcome import Outcome
from tl_rome.editors.edits.receipts.receipt import UpdateFigures

MIN_DIVISOR_RATIO = 0.1
"""Below this the update is more than ten times larger than one key in both places would make it."""
MAX_DISTURBANCE = 0.5
"""Above this the edit changes the layer's output on ordinary text by more than half its size."""
MAX_NLL_RISE = 0.5
"""Nats per token that plain sentences may become less likely."""
MIN_ENTROPY_SHARE = 0.5
"""Below this share of what it was, the entropy of the next token in plain sentences has collapsed."""


def find_warnings(figures: UpdateFigures, before: Outcome, after: Outcome) -> tuple[str, ...]:
    """What suggests that an edit does damage, in words; empty for a sound one.

    Args:
        figures: What its editor knows of it.
        before: What the model says without it.
        after: What it says with the edit applied.
    """
    found = []
    # "not x >= limit" rather than "x < limit", so that NaN is a sign of damage too.
    if figures.divisor_ratio is not None and not figures.divisor_ratio >= MIN_DIVISOR_RATIO:
        found.append(
            f"the divisor is {figures.divisor_ratio:.2f} of what the covariance predicts, at least "
            f"{MIN_DIVISOR_RATIO} is expected: the prompt's key points away from the averaged one; try preset 'r_rome'"
        )
    if figures.disturbance is not None and not figures.disturbance <= MAX_DISTURBANCE:
        found.append(
            f"the layer's output on ordinary text changes by {figures.disturbance:.0%} of its size, at most "
            f"{MAX_DISTURBANCE:.0%} is expected; try preset 'r_rome', or a smaller clamp"
        )
    return (*found, *find_text_warnings(before, after))


def find_text_warnings(before: Outcome, after: Outcome) -> tuple[str, ...]:
    """What plain sentences show of damage, in words; see `find_warnings`."""
    found = []
    if not after.text_nll - before.text_nll <= MAX_NLL_RISE:
        found.append(f"plain sentences cost {after.text_nll:.2f} nats per token, {before.text_nll:.2f} before the edit")
    if not after.text_entropy >= MIN_ENTROPY_SHARE * before.text_entropy:
        found.append(
            f"next-token entropy in plain sentences collapses from {before.text_entropy:.2f} to "
            f"{after.text_entropy:.2f} nats"
        )
    return tuple(found)
