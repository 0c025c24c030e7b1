"""Borrowing a model to take gradients through it, whatever gradient mode the caller is in."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.running.borrowed import borrowed
from tl_rome.running.interrupts import reliable
from tl_rome.running.memory import is_out_of_memory
from tl_rome.running.packed import holds_packed
from tl_rome.sites import HookedModel


@reliable
def borrowed_for_gradients(model: HookedModel) -> Iterator[None]:
    """`borrowed`, and inside it tensors are ordinary ones, also where the caller is in `torch.inference_mode()`.

    A packed module whose output does not depend on its input for autograd would make gradients wrong without an error,
    since they flow around it. So each is looked at in its first run with gradients.

    Args:
        model: A HookedTransformer or TransformerBridge.

    Raises:
        InputError: If the model's weights were made in inference mode, so that no gradient can pass through them.
        UnsupportedModelError: As `borrowed` does; inside, if no gradient passes through a packed module.
    """
    enabled = torch.is_grad_enabled()  # leaving inference mode would turn gradients on
    with torch.inference_mode(False), torch.set_grad_enabled(enabled), borrowed(model):
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise InputError(
                "the model has weights that were loaded inside torch.inference_mode(), through which no gradient can "
                "pass; load it outside: editing it inside works"
            )
        packed = [module for module in model.modules() if holds_packed(module)]
        handles = [module.register_forward_hook(_Passing()) for module in packed]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Passing:
    """A hook that makes sure, once, that gradients pass through a module."""

    def __init__(self) -> None:
        self._known = False

    def __call__(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        wanted = [each for each in given if isinstance(each, Tensor) and each.requires_grad]
        if self._known or not wanted or not torch.is_grad_enabled():
            return
        reason = "its output has none"
        if isinstance(output, Tensor) and output.requires_grad:
            try:
                found = torch.autograd.grad(output.sum(), wanted, retain_graph=True, allow_unused=True)
                self._known = all(each is not None for each in found)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:120]
        if not self._known:
            raise UnsupportedModelError(
                f"no gradient passes through the packed {type(module).__name__} of this model ({reason}), so no edit "
                "can be made on it; make the edit on the model without quantisation, or with another one, and run it "
                "here: edited_rows(model, [edit], same_weights=False)"
            )
