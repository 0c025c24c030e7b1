"""Borrowing a model to take gradients through it, whatever gradient mode the caller is in."""

from collections.abc import Iterator

import torch

from tl_rome.errors import InputError
from tl_rome.running.borrowed import borrowed
from tl_rome.running.interrupts import reliable
from tl_rome.sites import HookedModel


@reliable
def borrowed_for_gradients(model: HookedModel) -> Iterator[None]:
    """`borrowed`, and inside it tensors are ordinary ones, also where the caller is in `torch.inference_mode()`.

    Args:
        model: A HookedTransformer or TransformerBridge.

    Raises:
        InputError: If the model's weights were made in inference mode, so that no gradient can pass through them.
        UnsupportedModelError: As `borrowed` does.
    """
    enabled = torch.is_grad_enabled()  # leaving inference mode would turn gradients on
    with torch.inference_mode(False), torch.set_grad_enabled(enabled), borrowed(model):
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise InputError(
                "the model has weights that were loaded inside torch.inference_mode(), through which no gradient can "
                "pass; load it outside: editing it inside works"
            )
        yield
