"""Did the edit take? Three facts about the edited model, and the verdict that follows from them.

    preferred   the new target is more likely than the true one; without a true one, its first token is the likeliest
    said        greedy continuation of the prompt begins with the new target
    said again  the same after a text in front of the prompt, which stands for a paraphrase

The text is the first context that is not empty; for an editor without contexts, such as fine-tuning, it is `NEUTRAL`.
An edit took if all three hold and did not take if none does. A probability that is NaN means that it did not take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from tl_rome.editors.edits.receipts.outcome import Outcome

NEUTRAL = "It is well known that "
"""Put in front of the prompt where an editor has no context of its own."""

Verdict = Literal["took", "partly", "did not take"]


@dataclass(frozen=True)
class Taken:
    """What the edited model does with the new target."""

    preferred: bool
    """Whether it is more likely than the true target; where none is stated, whether its first token has rank 1."""
    said: bool
    """Whether greedy continuation of the prompt begins with it."""
    said_again: bool | None
    """Whether it does so after a text in front of the prompt; None if that is longer than the model's context."""

    @classmethod
    def of(cls, after: Outcome) -> "Taken":
        """What the outcome of an edit shows."""
        if any(map(isnan, after.probs)):
            return cls(False, False, None if after.said_again is None else False)
        preferred = after.probs[0] > after.probs[1] if len(after.probs) > 1 else after.ranks[0] == 1
        return cls(preferred, after.said, after.said_again)

    @property
    def facts(self) -> dict[str, bool | None]:
        """Each fact under the name that a receipt gives it."""
        return {"preferred": self.preferred, "said": self.said, "said after another text": self.said_again}

    @property
    def verdict(self) -> Verdict:
        """What the facts say; one that could not be measured does not count."""
        facts = [fact for fact in self.facts.values() if fact is not None]
        return "took" if all(facts) else "partly" if any(facts) else "did not take"


def first_context(contexts: Sequence[str]) -> str:
    """The text to put in front of the prompt: the first context that is not empty, else `NEUTRAL`."""
    return next((context for context in contexts if context), NEUTRAL)


def verdict_warning(taken: Taken, remedy: str, after_text: str = "") -> str | None:
    """What is missing and what to try, in words; None if the edit took.

    Args:
        taken: The facts.
        remedy: What to try, which its editor knows.
        after_text: More to try where the prompt is continued with the new target, but not after another text.
    """
    if taken.verdict == "took":
        return None
    names = {
        "the new target is not preferred": taken.preferred,
        "the prompt is not continued with it": taken.said,
        "with another text before it, the prompt is not continued with it": taken.said_again,
    }
    missing = "; ".join(name for name, fact in names.items() if fact is False)
    verb = "took only partly" if taken.verdict == "partly" else "did not take"
    more = after_text if taken.said and taken.said_again is False else ""
    return f"it {verb}: {missing}; try {remedy}{more}"
