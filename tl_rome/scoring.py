"""Log-probabilities of multi-token targets after prompts: the measure behind receipts and every success score.

A prompt and a target are scored as `f"{prompt} {target}"`, token by token with teacher forcing. The draft
multiplies token probabilities (its eq. 5); the authors' code compares means of token log-probabilities. `TargetScores`
has both.

The last token of a target is predicted, never read, so it is not run; targets of one prompt share a row where what is
run of one is the beginning of the other, as for all targets of one token.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_rome.arguments import Count, guarded
from tl_rome.errors import InputError, NumericsError
from tl_rome.running.borrowed import borrows
from tl_rome.running.forward import device_of, final_logits, last_resid, read
from tl_rome.running.memory import Halving, fitting_tokens
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, encode_target, pad

_LOGIT_ROWS = 256
"""Positions unembedded at once; with a vocabulary of 50,000 that is 50 MB of float32 logits."""
_TOKENS = 4096
"""Padded tokens run at once on a CPU."""
_BUSY = 128
"""Tokens that keep a CPU busy, so that more of them are only worth it where they need no padding."""

RowContext = Callable[[Sequence[int]], AbstractContextManager]
"""Gives the context in which the rows of these prompts are run, by their indices in the order of the batch's rows."""


@dataclass(frozen=True, eq=False)
class TargetScores:
    """How likely each target is after its prompt."""

    logprob: Float[Tensor, " n"]
    """Sum of the target's token log-probabilities, in nats."""
    n_tokens: Int[Tensor, " n"]
    """Tokens of each target."""
    is_argmax: Bool[Tensor, " n"]
    """Whether every token of the target is the most likely one at its place."""

    @property
    def prob(self) -> Float[Tensor, " n"]:
        """Probability of the whole target: the product over its tokens, in [0, 1]."""
        return self.logprob.exp()

    @property
    def nll(self) -> Float[Tensor, " n"]:
        """Mean negative log-likelihood per token, in nats, as the authors' code compares."""
        return -self.logprob / self.n_tokens

    def __getitem__(self, chosen: slice) -> "TargetScores":
        return TargetScores(self.logprob[chosen], self.n_tokens[chosen], self.is_argmax[chosen])


@dataclass(frozen=True, eq=False)
class ScoringPrompt:
    """Tokens and what might follow them."""

    start: Int[Tensor, " start"]
    """What is given, at least one token."""
    ends: tuple[Int[Tensor, " _"], ...] = ()
    """Continuations to score; with none, only the state is read."""

    @classmethod
    def texts(
        cls, model: HookedModel, prompt: str, targets: Sequence[str], joiner: str | None = None
    ) -> "ScoringPrompt":
        """A prompt and its targets, tokenised.

        Raises:
            InputError: See `encode` and `encode_target`.
        """
        return cls(encode(model, prompt), tuple(encode_target(model, target, prompt, joiner) for target in targets))


@dataclass
class _Row:
    """One row of a batch, and the continuations that are read from it."""

    prompt: int
    tokens: Int[Tensor, " pos"]
    start: int
    """Length of the prompt."""
    ends: list[tuple[int, Int[Tensor, " _"]]] = field(default_factory=list)
    """Place among all results, and tokens."""

    @property
    def read(self) -> list[tuple[int, int, int]]:
        """For each token of a continuation: where it is predicted, its place among all results, and itself."""
        return [
            (self.start - 1 + step, owner, token) for owner, end in self.ends for step, token in enumerate(end.tolist())
        ]


@guarded
@borrows
@torch.no_grad()
def score_targets(
    model: HookedModel,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_batch_tokens: Count | None = None,
    joiner: str | None = None,
    row_context: RowContext = nullcontext,
) -> TargetScores:
    """Score each target as the continuation of its prompt.

    Args:
        model: Left as found.
        prompts: Texts to continue.
        targets: One per prompt, without a leading space.
        max_batch_tokens: Bound on the padded tokens run at once; a longer single row still runs. By default what fits
            the device, 4096 on a CPU.
        joiner: What stands between each prompt and its target; by default `joiner_after` of the prompt decides.
        row_context: Called with the indices of the prompts that are run together, in the order of the batch's rows; the
            run is made inside the context that it returns.

    Returns:
        Scores in the order given; float64, on the CPU.

    Raises:
        InputError: If the numbers of prompts and targets differ, or a text cannot be tokenised (see `encode_target`).
        NumericsError: If a score is not finite; its row is the place in `prompts`, counted from 0.
    """
    if len(prompts) != len(targets):
        raise InputError(f"{len(prompts)} prompts but {len(targets)} targets; give one target per prompt")
    pairs = zip(prompts, targets, strict=True)
    given = [ScoringPrompt.texts(model, prompt, [target], joiner) for prompt, target in pairs]
    return score_prompts(model, given, max_batch_tokens=max_batch_tokens, row_context=row_context)[0]


@borrows
@torch.no_grad()
def score_prompts(
    model: HookedModel,
    given: Sequence[ScoringPrompt],
    *,
    max_batch_tokens: int | None = None,
    row_context: RowContext = nullcontext,
) -> tuple[TargetScores, Float[Tensor, "prompts d_model"]]:
    """Score any number of continuations of each prompt, and read the state after the prompt from the same pass.

    Args:
        model: Left as found.
        given: Prompts with their continuations.
        max_batch_tokens: See `score_targets`.
        row_context: See `score_targets`; a prompt's index occurs once for each of its rows.

    Returns:
        Scores of all continuations, one prompt's after the other's; and the last block's output at each prompt's last
        token, on the CPU, from which `final_logits` makes the logits of the next one.

    Raises:
        NumericsError: If a score is not finite; its row is the place in `given`, counted from 0.
    """
    if not given:
        nothing = torch.zeros(0, dtype=torch.float64)
        return TargetScores(nothing, nothing.long(), nothing == 0), torch.zeros(0, model.cfg.d_model)
    rows = _rows(given)
    bound = max_batch_tokens or fitting_tokens(model, _TOKENS)
    busy = _BUSY if device_of(model).type == "cpu" else bound
    halving, order, readings = Halving("rows to score"), list[_Row](), list[_Reading]()

    def run(batch: Sequence[_Row]) -> _Reading:
        return _read(model, batch, row_context)

    for chunk in _chunks([len(row.tokens) for row in rows], bound, busy):
        for batch, reading in halving([rows[i] for i in chunk], run):
            order += batch
            readings.append(reading)
    states, found, hits = (torch.cat(parts).cpu() for parts in zip(*readings, strict=True))  # nothing waited before
    owner = torch.tensor([owner for row in order for _, owner, _ in row.read], dtype=torch.int64)
    n_tokens = torch.tensor([len(end) for prompt in given for end in prompt.ends], dtype=torch.int64)
    logprob, misses = torch.zeros(2, len(n_tokens), dtype=torch.float64)
    logprob.index_add_(0, owner, found.double())
    misses.index_add_(0, owner, (~hits).double())
    _check_finite(given, logprob)
    last_row = {row.prompt: place for place, row in enumerate(order)}
    return TargetScores(logprob, n_tokens, misses == 0), states[[last_row[prompt] for prompt in range(len(given))]]


_Reading = tuple[Float[Tensor, "rows d_model"], Float[Tensor, " read"], Bool[Tensor, " read"]]
"""Of a batch, on the model's device: states after the prompts; log-probabilities of the tokens read; whether each is
the most likely one."""


def _read(model: HookedModel, batch: Sequence[_Row], row_context: RowContext) -> _Reading:
    """Run some rows. What is read, and where, is on the device before they run, so that nothing waits for them."""
    device, last = device_of(model), last_resid(model)
    places = [(i, position, token) for i, row in enumerate(batch) for position, _, token in row.read]
    at, position, expected = torch.tensor(places, dtype=torch.int64).reshape(-1, 3).T.to(device)
    ends = torch.tensor([row.start - 1 for row in batch]).to(device)
    with row_context([row.prompt for row in batch]):
        resid = read(model, pad([row.tokens for row in batch]).tokens, [last])[last]
    found, hits = _token_logprobs(model, resid[at, position], expected)
    return resid[torch.arange(len(batch), device=device), ends], found, hits


def _check_finite(given: Sequence[ScoringPrompt], logprob: Float[Tensor, " n"]) -> None:
    broken = set((~logprob.isfinite()).nonzero()[:, 0].tolist())
    owners = [index for index, prompt in enumerate(given) for _ in prompt.ends]
    if rows := sorted({owners[number] for number in broken}):
        shown = ", ".join(map(str, rows[:5])) + ", ..." * (len(rows) > 5)
        raise NumericsError(
            f"the score of row {shown} of {len(given)} is not finite; look for NaN or inf weights, or for an edit that "
            "broke the model"
        )


def _rows(given: Sequence[ScoringPrompt]) -> list[_Row]:
    """The fewest rows in which every continuation can be read."""
    rows: list[_Row] = []
    owner = 0
    for index, prompt in enumerate(given):
        start, mine = len(prompt.start), []
        numbered = list(enumerate(prompt.ends, owner))
        owner += len(numbered)
        for number, end in sorted(numbered, key=lambda pair: -len(pair[1])):
            body = end[:-1]
            row = next((row for row in mine if torch.equal(row.tokens[start : start + len(body)], body)), None)
            if row is None:
                row = _Row(index, torch.cat([prompt.start, body]), start)
                mine.append(row)
            row.ends.append((number, end))
        rows += mine or [_Row(index, prompt.start, start)]
    return rows


def _token_logprobs(
    model: HookedModel, resid: Float[Tensor, "n d_model"], expected: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Log-probability of each token in nats, and whether it is the most likely one."""
    parts, hits = [], []
    for part, tokens in zip(resid.split(_LOGIT_ROWS), expected.split(_LOGIT_ROWS), strict=True):
        logits = final_logits(model, part).float()
        picked = logits.gather(1, tokens[:, None])[:, 0]
        parts.append(picked - logits.logsumexp(dim=-1))
        hits.append(logits.argmax(dim=-1) == tokens)
    return torch.cat(parts), torch.cat(hits)


def _chunks(lengths: Sequence[int], max_batch_tokens: int, busy: int) -> list[list[int]]:
    """Group row indices, shortest first, so that rows x longest row stays within the bound.

    A group that has `busy` tokens takes no longer row, which would pad it.
    """
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length, last = lengths[index], chunks[-1] if chunks else []
        longest = lengths[last[-1]] if last else 0
        if last and (len(last) + 1) * length <= max_batch_tokens and (length == longest or len(last) * longest < busy):
            last.append(index)
        else:
            chunks.append([index])
    return chunks
