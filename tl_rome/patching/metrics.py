"""What a trace scores: functions of the logits, in TransformerLens's layout.

A metric gets logits [rows, pos, d_vocab] and returns one number per row. The positions are those that are scored: the
prompt's last, or, when a whole object is scored, those that predict each of its tokens. So `logits[:, -1]` is the
prediction after the prompt, as in TransformerLens's own patching metrics (which average over rows; here rows are the
draws of a corruption, averaged afterwards).
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_rome.tokens import TokenizedModel, encode_target

Metric = Callable[[Float[Tensor, "rows scored d_vocab"]], Float[Tensor, " rows"]]
"""A score from logits, one per row."""


@dataclass(frozen=True)
class TargetLogprob:
    """Log-probability of a target in nats: the sum over its tokens, each predicted at its own position."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Float[Tensor, "rows scored d_vocab"]) -> Float[Tensor, " rows"]:
        """Score each row."""
        logprobs = logits[:, -len(self.tokens) :].log_softmax(dim=-1)
        return sum(logprobs[:, place, token] for place, token in enumerate(self.tokens))  # type: ignore[return-value]


@dataclass(frozen=True)
class TargetProbability:
    """Probability of a target, in [0, 1]: the paper's score, the product of eq. 5 where it has several tokens."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Float[Tensor, "rows scored d_vocab"]) -> Float[Tensor, " rows"]:
        """Score each row."""
        return TargetLogprob(self.tokens)(logits).exp()


@dataclass(frozen=True)
class LogitDifference:
    """Logit of one token minus that of another, after the prompt."""

    token: int
    other: int

    @classmethod
    def between(cls, model: TokenizedModel, target: str, other: str) -> "LogitDifference":
        """The difference between the first tokens of two targets.

        Raises:
            InputError: If a target is empty.
        """
        return cls(*(int(encode_target(model, text)[0]) for text in (target, other)))

    def __call__(self, logits: Float[Tensor, "rows scored d_vocab"]) -> Float[Tensor, " rows"]:
        """Score each row."""
        return logits[:, -1, self.token] - logits[:, -1, self.other]
