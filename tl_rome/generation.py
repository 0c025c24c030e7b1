"""Sampling continuations with a key-value cache and a given generator.

TransformerLens's `generate` draws from the global random state; here every draw comes from the given generator, on the
CPU. The same seed gives the same text from the same model class on the same machine; elsewhere logits differ in their
last digits, and a draw that falls between two tokens can choose the other, see docs/reproducibility.md.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count, Whole, guarded
from tl_rome.errors import InputError, NumericsError, UnsupportedModelError
from tl_rome.running.blocks import first_run
from tl_rome.running.borrowed import borrows
from tl_rome.running.forward import device_of, new_cache, run, run_cached
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, pad

Draws = torch.Generator | Sequence[torch.Generator]
"""Source of the draws: one for all rows, or one per row, so that a row's text does not depend on the others."""

_log = logging.getLogger(__name__)
_PREFILL = 1024
"""Prompt tokens that are run at once, which bounds the logits that are made and thrown away."""


@borrows
def sample_tokens(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    new_tokens: int,
    *,
    generator: Draws,
    top_k: int | None = 5,
    progress: bool = False,
) -> Int[Tensor, "batch longer"]:
    """Continue every row by `new_tokens` tokens.

    Args:
        model: Left as found; hooks that are on it act on every step.
        tokens: Prompts of equal length, without padding.
        new_tokens: How many tokens to add; generation does not stop early.
        generator: Source of the draws, for all rows or one for each.
        top_k: Sample among the k most likely tokens (1 is greedy), or among all if None.
        progress: Whether to show a progress bar over steps.

    Returns:
        Prompts and continuations, on the CPU.

    Raises:
        InputError: If the result would be longer than the model's context, or `top_k` is not a number of tokens.
    """
    if tokens.shape[1] + new_tokens > model.cfg.n_ctx:
        raise InputError(f"{tokens.shape[1]} + {new_tokens} tokens exceed the model's context of {model.cfg.n_ctx}")
    length = tokens.shape[1] + new_tokens
    return generate_to_length(model, list(tokens), length, generator=generator, top_k=top_k, progress=progress)


@borrows
@torch.no_grad()
def generate_to_length(
    model: HookedModel,
    prompts: Sequence[Int[Tensor, " _"]],
    length: int,
    *,
    generator: Draws,
    top_k: int | None = 5,
    progress: bool = False,
) -> Int[Tensor, "prompts length"]:
    """Continue prompts of different lengths until all have the same length, as the released code does.

    All rows go on token by token from the end of the shortest; one that is still inside its prompt takes its next token
    from there. So nothing is padded.

    Args:
        model: Left as found; hooks that are on it act on every step.
        prompts: Tokens of each prompt, at least one; no more than `length` are taken.
        length: Tokens of a prompt and its continuation.
        generator: Source of the draws, for all rows or one for each.
        top_k: As in `sample_tokens`.
        progress: Whether to show a progress bar over steps.

    Raises:
        InputError: If the length exceeds the model's context, or `top_k` is not a number of tokens.
        NumericsError: If a logit is not finite.
    """
    if length > model.cfg.n_ctx:
        raise InputError(f"{length} tokens exceed the model's context of {model.cfg.n_ctx}")
    if top_k is not None and not 1 <= top_k <= model.cfg.d_vocab:
        raise InputError(f"top_k is {top_k}; use 1 to {model.cfg.d_vocab}, the model's vocabulary, or None for all")
    text = pad([prompt[:length].cpu() for prompt in prompts])
    begun = int(text.lengths.min())
    tokens = torch.nn.functional.pad(text.tokens, (0, length - text.tokens.shape[1]))
    reader, choose = _Reader(model, len(tokens)), _Choice(generator, top_k)
    *earlier, following = tokens[:, :begun].split(max(1, _PREFILL // len(tokens)), dim=1)
    if begun < length:
        for part in earlier:
            reader(part)
    for position in tqdm(range(begun, length), desc="sample", unit="token", disable=not progress):
        rows = (text.lengths <= position).nonzero()[:, 0]
        tokens[rows, position] = choose(reader(following), rows)
        following = tokens[:, position : position + 1]
    return tokens


class _Reader:
    """Logits of the token after all that was read, by a key-value cache, or from scratch if the model ignores it."""

    def __init__(self, model: HookedModel, rows: int) -> None:
        self.model, self.cache = model, new_cache(model, rows)
        self.read = torch.zeros(rows, 0, dtype=torch.long)

    def __call__(self, tokens: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows d_vocab"]:
        """Read some more tokens of every row."""
        begun = self.read.shape[1] > 0
        self.read = torch.cat([self.read, tokens], dim=1)
        if self.cache is not None:
            try:
                with nullcontext() if begun else first_run("the model takes no key-value cache of the usual kind"):
                    return run_cached(self.model, tokens.to(device_of(self.model)), self.cache)[:, -1]
            except UnsupportedModelError as error:
                if begun:
                    raise
                _log.warning("%s; sampling by a whole forward pass for each token instead", error)
                self.cache = None
        return run(self.model, self.read.to(device_of(self.model)))[:, -1]


@dataclass(frozen=True, eq=False)
class _Choice:
    """Chooses next tokens: the most likely ones are found on the model's device, and those alone leave it."""

    generator: Draws
    top_k: int | None

    def __call__(self, logits: Float[Tensor, "batch d_vocab"], rows: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """A next token for each of some rows.

        Args:
            logits: Of all rows.
            rows: On the CPU, ascending.

        Raises:
            NumericsError: If a logit is not finite.
        """
        kept, tokens = logits.float(), None
        if self.top_k is not None:
            kept, tokens = (found.cpu()[rows] for found in kept.topk(self.top_k, dim=-1))
        else:
            kept = kept.cpu()[rows]
        if not bool(kept.isfinite().all()):
            raise NumericsError(
                "logits are not finite; look for NaN or inf weights, or for an edit that broke the model"
            )
        choice = (kept.softmax(dim=-1) / self._race(kept, rows)).argmax(dim=-1, keepdim=True)
        return (choice if tokens is None else tokens.gather(1, choice))[:, 0]

    def _race(self, kept: Float[Tensor, "rows choices"], rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows choices"]:
        """Exponential draws; the largest of p / draw is a choice by p, and the one that `torch.multinomial` makes."""
        draws = torch.empty_like(kept)
        if isinstance(self.generator, torch.Generator):
            return draws.exponential_(generator=self.generator)
        for draw, row in zip(draws, rows.tolist(), strict=True):
            draw.exponential_(generator=self.generator[row])
        return draws


@guarded
@borrows
def continue_texts(
    model: HookedModel,
    prompts: Sequence[str],
    new_tokens: Whole,
    *,
    generator: torch.Generator,
    top_k: Count | None = 5,
    progress: bool = False,
    row_context: Callable[[Sequence[int]], AbstractContextManager] = nullcontext,
) -> list[str]:
    """Continuations of texts, without the prompts; prompts of equal token length are run together.

    Args:
        model: Left as found.
        prompts: Texts to continue.
        new_tokens: Length of each continuation in tokens.
        generator: Source of the draws.
        top_k: As in `sample_tokens`.
        progress: Whether to show progress.
        row_context: Called with the indices of the prompts that are run together, in the order of the batch's rows;
            they are run inside the context that it returns.

    Raises:
        InputError: If a prompt cannot be tokenised, or the result would exceed the context.
    """
    encoded = [encode(model, prompt) for prompt in prompts]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, tokens in enumerate(encoded):
        by_length[len(tokens)].append(index)
    texts = [""] * len(prompts)
    for length, rows in by_length.items():
        batch = torch.stack([encoded[row] for row in rows])
        with row_context(rows):
            sampled = sample_tokens(model, batch, new_tokens, generator=generator, top_k=top_k, progress=progress)
        for row, ids in zip(rows, sampled[:, length:].tolist(), strict=True):
            texts[row] = model.tokenizer.decode(ids)
    return texts


def start_token(model: HookedModel) -> int:
    """The token that text is sampled from: BOS, or end-of-text where there is no BOS.

    Raises:
        UnsupportedModelError: If the tokenizer has neither.
    """
    for token in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UnsupportedModelError("the tokenizer has no BOS and no EOS token to sample text from; pass contexts yourself")
