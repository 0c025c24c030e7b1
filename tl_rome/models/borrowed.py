"""A model is borrowed: what every public call does to it before its work, and undoes afterwards.

Models come as their owners left them: in train mode, where dropout makes every figure random, or asked to return
attention weights, which changes what blocks return. Both are set aside for the length of a call. And a model whose
logits this library could not make from its residual stream is refused before anything is computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tl_rome.forward import check_final_logits
from tl_rome.sites import HookedModel, is_hooked_transformer

_OUTPUTS = ("output_attentions", "output_hidden_states")
"""Settings of a Hugging Face configuration that add to what blocks return."""


@contextmanager
def borrowed(model: HookedModel) -> Iterator[None]:
    """Have a model in eval mode, returning nothing but logits; modes and settings are as they were afterwards.

    Args:
        model: A HookedTransformer or TransformerBridge.

    Raises:
        UnsupportedModelError: If it is neither, or its logits are not those of its last residual stream.
    """
    original: Any = None if is_hooked_transformer(model) else model.original_model  # type: ignore[attr-defined]
    owners = [model] if original is None else [model, original]  # a bridge does not count its model's own modules
    training = [module for owner in owners for module in owner.modules() if module.training]  # type: ignore[attr-defined]
    config = getattr(original, "config", None)
    asked = [name for name in _OUTPUTS if getattr(config, name, False)]
    try:
        for module in training:
            module.training = False
        for name in asked:
            setattr(config, name, False)
        check_final_logits(model)
        yield
    finally:
        for module in training:
            module.training = True
        for name in asked:
            setattr(config, name, True)
