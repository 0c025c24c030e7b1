"""Texts that stand before the prompt while k* and v* are found, so that an edit does not depend on where it stands.

The released recipe samples them from the model itself: ten of 5 tokens and ten of 10, top-k 5, from the
beginning-of-text token, whose position counts in the length; each becomes `"text. "`. The prompt itself, with nothing
before it, comes first.
"""

import torch

from tl_rome.editors.config import RomeConfig
from tl_rome.errors import UnsupportedModelError
from tl_rome.generation import sample_tokens
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode


def start_token(model: HookedModel) -> int:
    """The token that text is sampled from: BOS, or end-of-text where there is no BOS.

    Raises:
        UnsupportedModelError: If the tokenizer has neither.
    """
    for token in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UnsupportedModelError("the tokenizer has no BOS and no EOS token to sample text from; pass contexts yourself")


def sample_contexts(model: HookedModel, config: RomeConfig, *, generator: torch.Generator) -> tuple[str, ...]:
    """Prefixes to put before a prompt, the empty one first.

    Args:
        model: Left as found.
        config: Says how many, how long, from what beginning, and among how many tokens to sample.
        generator: Source of the draws.

    Returns:
        `""` followed by strings that end in `". "`.
    """
    prefixes = [""]
    for length, count in config.context_lengths:
        if config.context_openings:
            texts = _from_openings(model, config, length, count, generator)
        else:
            start = torch.full((count, 1), start_token(model))
            sampled = sample_tokens(model, start, length - 1, generator=generator, top_k=config.context_top_k)
            texts = model.tokenizer.batch_decode(sampled[:, 1:], skip_special_tokens=True)
        prefixes += [f"{text}. " for text in texts]
    return tuple(prefixes)


def _from_openings(
    model: HookedModel, config: RomeConfig, length: int, count: int, generator: torch.Generator
) -> list[str]:
    """Texts of `length` tokens, BOS not counted, that begin with the openings in turn."""
    texts = []
    for index in range(count):
        start = encode(model, config.context_openings[index % len(config.context_openings)])
        bos = int(bool(model.cfg.default_prepend_bos))
        more = max(0, length + bos - len(start))
        sampled = sample_tokens(model, start[None], more, generator=generator, top_k=config.context_top_k)
        texts.append(model.tokenizer.decode(sampled[0, bos:], skip_special_tokens=True))
    return texts
