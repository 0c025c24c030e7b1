"""What a trace scores: functions of the logits, in TransformerLens's layout.

A metric gets logits [rows, pos, d_vocab] and returns one number per row. The positions are those that are scored: the
prompt's last, or, when a whole object is scored, those that predict each of its tokens. So `logits[:, -1]` is the
prediction after the prompt, as in TransformerLens's own patching metrics (which average over rows; here rows are the
draws of a corruption, averaged afterwards). A metric that gives a single number, as TransformerLens's do, is called row
by row. Metrics of one sweep share the logits, so none may change them in place. Figures call it by what its method
`label(model)` returns, if it has one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Whole
from tl_rome.errors import InputError
from tl_rome.tokens import TokenizedModel, encode_target, token_labels

Metric = Callable[[Float[Tensor, "rows scored d_vocab"]], Float[Tensor, " rows"]]
"""A score from logits, one per row."""


def per_row(metric: Callable[[Tensor], Tensor], clean_logits: Float[Tensor, "1 scored d_vocab"]) -> Metric:
    """Check on the clean run that a metric gives one number per row, or call it row by row if it gives one in all.

    Args:
        metric: The user's function of logits.
        clean_logits: Logits of the clean run.

    Returns:
        The metric itself, or one that gives it a single row [1, scored, d_vocab] at a time.

    Raises:
        InputError: If it returns anything else, or changes the logits.
    """
    rows, found = _tried(metric, clean_logits, rows=1)
    if _shape(found) == ():
        return lambda logits: torch.stack([metric(row[None]) for row in logits])
    if _shape(found) == (1,):  # two rows tell one number per row from a mean that keeps its axis
        rows, found = _tried(metric, clean_logits, rows=2)
        if _shape(found) == (2,):
            return metric
    what = f"a {type(found).__name__}" if _shape(found) is None else f"shape {_shape(found)}"
    raise InputError(
        f"the metric {metric_name(metric)} returned {what} for logits of shape {tuple(rows.shape)}; return a tensor "
        "with one number per row, as `logits[:, -1, token]` is, or a single number, as its mean is"
    )


def metric_name(metric: Callable[..., object]) -> str:
    """The function's or the class's name, for messages."""
    return getattr(metric, "__qualname__", type(metric).__name__)


def _tried(metric: Callable[[Tensor], Tensor], clean_logits: Tensor, *, rows: int) -> tuple[Tensor, object]:
    """A copy of the clean logits, repeated, and what a metric makes of it."""
    with torch.inference_mode(mode=False):  # inference tensors do not count changes
        copy = clean_logits.repeat(rows, 1, 1)
    before = copy._version
    found = metric(copy)
    if copy._version != before:
        raise InputError(
            f"the metric {metric_name(metric)} changes the logits in place, which others are scored by too; use "
            "operations that return a new tensor, such as mul for mul_, or change logits.clone()"
        )
    return copy, found


def _shape(score: object) -> tuple[int, ...] | None:
    return tuple(score.shape) if isinstance(score, Tensor) else None


@dataclass(frozen=True)
class TargetLogprob:
    """Log-probability of a target in nats: the sum over its tokens, each predicted at its own position."""

    tokens: tuple[Whole, ...]

    def __post_init__(self) -> None:
        if not self.tokens:
            raise InputError("there are no tokens to score; give those of a target")

    def __call__(self, logits: Float[Tensor, "rows scored d_vocab"]) -> Float[Tensor, " rows"]:
        """Score each row.

        Raises:
            InputError: If a token is not one of the vocabulary, or there are more than positions.
        """
        _, scored, d_vocab = logits.shape
        if len(self.tokens) > scored or max(self.tokens) >= d_vocab:
            raise InputError(f"tokens {self.tokens} do not fit {scored} scored positions and {d_vocab} tokens")
        logprobs = logits[:, -len(self.tokens) :].log_softmax(dim=-1)
        return sum(logprobs[:, place, token] for place, token in enumerate(self.tokens))  # type: ignore[return-value]


@dataclass(frozen=True)
class TargetProbability(TargetLogprob):
    """Probability of a target, in [0, 1]: the paper's score; the product over its tokens where there are several."""

    def __call__(self, logits: Float[Tensor, "rows scored d_vocab"]) -> Float[Tensor, " rows"]:
        """Score each row."""
        return super().__call__(logits).exp()


@dataclass(frozen=True)
class LogitDifference:
    """Logit of one token minus that of another, after the prompt."""

    token: Whole
    other: Whole

    @classmethod
    def between(cls, model: TokenizedModel, target: str, other: str) -> "LogitDifference":
        """The difference between the first tokens of two targets.

        Raises:
            InputError: If a target is empty, or both begin with the same token.
        """
        token, same = (int(encode_target(model, text)[0]) for text in (target, other))
        if token == same:
            label = token_labels(model, torch.tensor([token]))[0]
            raise InputError(f"{target!r} and {other!r} both begin with the token {label!r}; choose other targets")
        return cls(token, same)

    def label(self, model: TokenizedModel) -> str:
        """What it is called on figures."""
        token, other = (label.strip() for label in token_labels(model, torch.tensor([self.token, self.other])))
        return f"logit({token}) - logit({other})"

    def __call__(self, logits: Float[Tensor, "rows scored d_vocab"]) -> Float[Tensor, " rows"]:
        """Score each row.

        Raises:
            InputError: If a token is not one of the vocabulary.
        """
        if max(self.token, self.other) >= logits.shape[-1]:
            raise InputError(f"tokens {self.token} and {self.other} are not both among {logits.shape[-1]}")
        return logits[:, -1, self.token] - logits[:, -1, self.other]
