"""What a model says to a request, and to a few plain sentences: measured before and after an edit.

One forward pass covers all: the prompt with each target, the prompt behind another text, and the sentences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.facts import EditRequest
from tl_rome.running.forward import final_logits, last_resid, read
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, encode_target, pad

PLAIN_TEXTS = (
    "She went to the market in the morning and bought some bread and milk.",
    "The river rises in the mountains and flows down to the sea.",
    "He said that he would come back as soon as the work was done.",
    "In the summer the days are long and the nights are short.",
    "If you want to learn to play an instrument, you have to practise every day.",
)
"""Ordinary sentences about nothing in particular, which no edit of a fact should change."""


@dataclass(frozen=True)
class Outcome:
    """Figures of one model in one state."""

    probs: tuple[float, ...]
    """Probability of each target after the prompt, the product over its tokens."""
    ranks: tuple[int, ...]
    """Place of each target's first token among all next tokens; 1 is the most likely."""
    text_nll: float
    """Mean negative log-likelihood of a token of `PLAIN_TEXTS`, in nats."""
    text_entropy: float
    """Mean entropy of the next-token distribution in `PLAIN_TEXTS`, in nats."""
    said: bool = False
    """Whether greedy continuation of the prompt begins with `target_new`."""
    said_again: bool | None = None
    """Whether that of the prompt behind another text does; None if there is none, or the context has no room for it."""


RunToTop = Callable[[Sequence[Int[Tensor, " _"]]], Float[Tensor, "rows pos d_model"]]
"""Gives the last block's output for texts, which are padded on the right; editors may know a shorter way to it."""


def probe_model(
    model: HookedModel, request: EditRequest, prefix: str | None = None, *, run: RunToTop | None = None
) -> Outcome:
    """Measure a model as it stands, see `probe_requests`."""
    return probe_requests(model, [request], prefix, run=run)[0]


@torch.no_grad()
def probe_requests(
    model: HookedModel, requests: Sequence[EditRequest], prefix: str | None = None, *, run: RunToTop | None = None
) -> list[Outcome]:
    """Measure a model as it stands on several requests; the plain sentences are run once.

    Args:
        model: Left as found.
        requests: `target_new` of each, and `target_true` if it has one, are scored.
        prefix: Text to put before each prompt for `Outcome.said_again`; it goes unmeasured without one.
        run: How to run the model; by default all of it.

    Raises:
        InputError: If a prompt with a target is longer than the context.
    """
    texts = [encode(model, text, truncate=True) for text in PLAIN_TEXTS]
    asked = [(_questions(model, request), _behind(model, request, prefix)) for request in requests]
    rows = [torch.cat(question)[:-1] for parts in asked for questions in parts for question in questions]
    resid = (run or _whole(model))([*rows, *(text[:-1] for text in texts)])
    ends = [row[: len(text) - 1] for row, text in zip(resid[len(rows) :], texts, strict=True)]
    logprobs = _logprobs(model, torch.cat(ends))
    nll = -_picked(logprobs, torch.cat([text[1:] for text in texts])).mean().item()
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean().item()
    left, outcomes = iter(resid), []
    for questions, behind in asked:
        probs, ranks, said, all_of = [], [], [], (*questions, *behind)
        ends = [next(left)[len(prompt) - 1 : len(prompt) - 1 + len(target)] for prompt, target in all_of]
        found = _logprobs(model, torch.cat(ends)).split([len(end) for end in ends])
        for (_, target), logprobs in zip(all_of, found, strict=True):
            probs.append(_picked(logprobs, target).sum().exp().item())
            ranks.append(int((logprobs[0] > logprobs[0, target[0]]).sum()) + 1)
            said.append(torch.equal(logprobs.argmax(-1), target))
        count, again = len(questions), said[-1] if behind else None
        outcomes.append(Outcome(tuple(probs[:count]), tuple(ranks[:count]), nll, entropy, said[0], again))
    return outcomes


def _whole(model: HookedModel) -> RunToTop:
    top = last_resid(model)
    return lambda texts: read(model, pad(list(texts)).tokens, [top])[top]


_Question = tuple[Int[Tensor, " pos"], Int[Tensor, " target"]]


def _behind(model: HookedModel, request: EditRequest, prefix: str | None) -> list[_Question]:
    """The prompt behind a text, with `target_new`; nothing where there is no text, or no room for it."""
    if prefix is None:
        return []
    try:
        prompt = prefix + request.fact.prompt
        return [(encode(model, prompt), encode_target(model, request.target_new, prompt, request.joiner))]
    except InputError:  # longer than the context: the prompt alone, which must fit, says what else is wrong
        return []


def _questions(model: HookedModel, request: EditRequest) -> list[_Question]:
    """The prompt with each target."""
    prompt = encode(model, request.fact.prompt)
    wanted = [target for target in (request.target_new, request.target_true) if target is not None]
    return [(prompt, encode_target(model, target, request.fact.prompt, request.joiner)) for target in wanted]


def _logprobs(model: HookedModel, resid: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
    return final_logits(model, resid).float().log_softmax(-1).cpu()


def _picked(logprobs: Float[Tensor, "pos d_vocab"], tokens: Int[Tensor, " pos"]) -> Float[Tensor, " pos"]:
    return logprobs.gather(1, tokens[:, None])[:, 0].double()
