"""Text that a model samples from its start token, for training without a corpus; a corpus is better."""

import torch

from tl_rome.arguments import Count
from tl_rome.editors.trained.data.windows import decoded
from tl_rome.generation import sample_tokens, start_token
from tl_rome.running.borrowed import borrows
from tl_rome.sites import HookedModel


@borrows
def sampled_texts(
    model: HookedModel,
    count: Count,
    *,
    generator: torch.Generator,
    tokens: Count = 96,
    batch_size: Count = 64,
    progress: bool = False,
) -> list[str]:
    """Texts of a given length, without the start token; what they say is not checked.

    Args:
        model: Left as found.
        count: How many texts.
        generator: Source of the draws.
        tokens: Of each text, or as many as the context holds.
        batch_size: Texts sampled at once.
        progress: Whether to show a progress bar over the tokens of each batch.

    Raises:
        UnsupportedModelError: If the tokenizer has no token to begin with.
    """
    found: list[str] = []
    length = min(tokens, model.cfg.n_ctx - 1)
    while len(found) < count:
        start = torch.full((min(batch_size, count - len(found)), 1), start_token(model))
        drawn = sample_tokens(model, start, length, generator=generator, top_k=None, progress=progress)
        found += [decoded(model, row[1:]) for row in drawn]
    return found
