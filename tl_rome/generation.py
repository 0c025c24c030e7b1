"""Sampling continuations with a key-value cache and a generator of one's own.

TransformerLens's `generate` draws from the global random state; here every draw comes from the generator that is handed
in, on the CPU, so that seeds give the same text on every device and in both model classes.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.errors import InputError
from tl_rome.forward import device_of, new_cache, run_cached
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode


@torch.no_grad()
def sample_tokens(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    new_tokens: int,
    *,
    generator: torch.Generator,
    top_k: int | None = 5,
    progress: bool = False,
) -> Int[Tensor, "batch longer"]:
    """Continue every row by `new_tokens` tokens.

    Args:
        model: Left as found; hooks that are on it act on every step.
        tokens: Prompts of equal length, without padding.
        new_tokens: How many tokens to add; there is no early end.
        generator: Source of the draws.
        top_k: Sample among the k most likely tokens (1 is greedy), or among all if None.
        progress: Whether to show a progress bar over steps.

    Returns:
        Prompts and continuations, on the CPU.

    Raises:
        InputError: If the result would be longer than the model's context, or `top_k` is not a number of tokens.
    """
    total = tokens.shape[1] + new_tokens
    if total > model.cfg.n_ctx:
        raise InputError(f"{tokens.shape[1]} + {new_tokens} tokens exceed the model's context of {model.cfg.n_ctx}")
    if top_k is not None and not 1 <= top_k <= model.cfg.d_vocab:
        raise InputError(f"top_k is {top_k}; use 1 to {model.cfg.d_vocab}, the model's vocabulary, or None for all")
    cache, device = new_cache(model, len(tokens)), device_of(model)
    steps, following = [tokens.cpu()], tokens
    for _ in tqdm(range(new_tokens), desc="sample", unit="token", disable=not progress):
        logits = run_cached(model, following.to(device), cache)[:, -1].float().cpu()
        if top_k is None:
            following = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        else:
            best = logits.topk(top_k, dim=-1)
            choice = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            following = best.indices.gather(1, choice)
        steps.append(following)
    return torch.cat(steps, dim=1)


def continue_texts(
    model: HookedModel,
    prompts: Sequence[str],
    new_tokens: int,
    *,
    generator: torch.Generator,
    top_k: int | None = 5,
    progress: bool = False,
    around: Callable[[Sequence[int]], AbstractContextManager] = nullcontext,
) -> list[str]:
    """Continuations of texts, without the prompts; prompts of equal token length are run together.

    Args:
        model: Left as found.
        prompts: Texts to continue.
        new_tokens: Length of each continuation in tokens.
        generator: Source of the draws.
        top_k: As in `sample_tokens`.
        progress: Whether to show progress.
        around: Called with the indices of the prompts that are run together, in the order of the batch's rows; they are
            run inside the context that it returns.

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
        with around(rows):
            sampled = sample_tokens(model, batch, new_tokens, generator=generator, top_k=top_k, progress=progress)
        for row, ids in zip(rows, sampled[:, length:].tolist(), strict=True):
            texts[row] = model.tokenizer.decode(ids)
    return texts
