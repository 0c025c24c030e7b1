"""The text that a model added to a prompt."""

from jaxtyping import Int
from torch import Tensor

from tl_rome.sites import HookedModel


def continuation(model: HookedModel, tokens: Int[Tensor, " pos"], start: int) -> str:
    """Text after the prompt; the prompt is decoded with it, since some tokenizers drop a text's first space."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    whole, prompt = (model.tokenizer.decode(part.tolist(), **options) for part in (tokens, tokens[:start]))
    return (
        whole[len(prompt) :] if whole.startswith(prompt) else model.tokenizer.decode(tokens[start:].tolist(), **options)
    )
