"""Log-probabilities of multi-token targets after prompts: the measure behind receipts and every success score.

A prompt and a target are scored as `f"{prompt} {target}"`, token by token with teacher forcing (eq. 5). The document
multiplies token probabilities; the authors' code compares means of token log-probabilities. `TargetScores` has both.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.forward import device_of, final_logits, last_resid, read
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, encode_target, pad

_LOGIT_ROWS = 256
"""Positions unembedded at once; with a vocabulary of 50,000 that is 50 MB of float32 logits."""


@dataclass(frozen=True, eq=False)
class TargetScores:
    """How likely each target is after its prompt."""

    logprob: Float[Tensor, " n"]
    """Sum of the target's token log-probabilities, in nats."""
    n_tokens: Int[Tensor, " n"]
    """Tokens of each target."""

    @property
    def prob(self) -> Float[Tensor, " n"]:
        """Probability of the whole target, the product of eq. 5."""
        return self.logprob.exp()

    @property
    def nll(self) -> Float[Tensor, " n"]:
        """Mean negative log-likelihood per token, in nats, as the authors' code compares."""
        return -self.logprob / self.n_tokens


@torch.no_grad()
def score_targets(
    model: HookedModel,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_tokens: int = 4096,
    around: Callable[[Sequence[int]], AbstractContextManager] = nullcontext,
) -> TargetScores:
    """Score each target as the continuation of its prompt.

    Args:
        model: Left as found.
        prompts: Texts to continue.
        targets: One per prompt, without a leading space.
        max_tokens: Bound on the padded tokens run at once; a longer single row still runs.
        around: Called with the indices of the prompts that are run together, in the order of the batch's rows; the run
            is made inside the context that it returns.

    Returns:
        Scores in the order given; float64, on the CPU.

    Raises:
        InputError: If the numbers of prompts and targets differ, or a text cannot be tokenised (see `encode_target`).
    """
    if len(prompts) != len(targets):
        raise InputError(f"{len(prompts)} prompts but {len(targets)} targets; give one target per prompt")
    starts = [encode(model, prompt) for prompt in prompts]
    ends = [encode_target(model, target, prompt) for target, prompt in zip(targets, prompts, strict=True)]
    lengths = [len(start) + len(end) for start, end in zip(starts, ends, strict=True)]
    logprob = torch.zeros(len(prompts), dtype=torch.float64)
    for chunk in _chunks(lengths, max_tokens):
        # The last target token is predicted, never read, so it need not be run.
        tokens = pad([torch.cat([starts[i], ends[i]])[:-1] for i in chunk]).tokens
        with around(chunk):
            resid = read(model, tokens, [last_resid(model)])[last_resid(model)]
        rows = torch.tensor([row for row, i in enumerate(chunk) for _ in ends[i]])
        columns = torch.cat([torch.arange(len(ends[i])) + len(starts[i]) - 1 for i in chunk])
        expected = torch.cat([ends[i] for i in chunk]).to(device_of(model))
        scored = _token_logprobs(model, resid[rows, columns], expected)
        logprob.index_add_(0, torch.tensor(chunk)[rows], scored.cpu())
    return TargetScores(logprob, torch.tensor([len(end) for end in ends], dtype=torch.int64))


def _token_logprobs(
    model: HookedModel, resid: Float[Tensor, "n d_model"], expected: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    parts = []
    for part, tokens in zip(resid.split(_LOGIT_ROWS), expected.split(_LOGIT_ROWS), strict=True):
        logprobs = final_logits(model, part).float().log_softmax(dim=-1)
        parts.append(logprobs.gather(1, tokens[:, None])[:, 0].double())
    return torch.cat(parts)


def _chunks(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group row indices, shortest first, so that rows x longest row stays within the bound."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if chunks and (len(chunks[-1]) + 1) * lengths[index] <= max_tokens:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks
