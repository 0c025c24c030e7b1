"""A model is borrowed: what every public function does to it before its work, and undoes afterwards.

Models come as their owners left them: in train mode, where dropout makes every figure random, or asked to return
attention weights, which changes what blocks return. Both are set aside for the length of a call. And a model whose
logits this library could not make from its residual stream is refused before anything is computed.

Public functions call each other; only the outermost one borrows the model, and checks it.
"""

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import torch

from tl_rome.running.arithmetic import shortened_products
from tl_rome.running.forward import check_final_logits
from tl_rome.running.interrupts import reliable
from tl_rome.running.loans import Loan, lent
from tl_rome.sites import HookedModel, forget_hook_points, hook_points, is_hooked_transformer, keep_hook_points

_log = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., Any])
_OUTPUTS = ("output_attentions", "output_hidden_states")
"""Settings of a Hugging Face configuration that add to what blocks return."""


def borrows(function: _Function) -> _Function:
    """Make a public function, whose first argument is a model, borrow that model for the length of each call."""

    @wraps(function)
    def borrowing(model: Any, *args: Any, **kwargs: Any) -> Any:
        with borrowed(model):
            return function(model, *args, **kwargs)

    return borrowing  # type: ignore[return-value]


@reliable
def borrowed(model: HookedModel) -> Iterator[None]:
    """Put a model in eval mode and let it return logits alone; its modes and settings are put back afterwards.

    Another thread that has the model is waited for. Inside another `borrowed` of the same model this does nothing. A
    model with hooks on it is not checked: they may be made for batches of a certain size.

    Args:
        model: A HookedTransformer or TransformerBridge.

    Raises:
        UnsupportedModelError: If it is neither, or its logits are not those of its last residual stream.
    """
    hooked_transformer, gradients = is_hooked_transformer(model), torch.is_grad_enabled()
    with lent(model) as loan:
        if loan.borrowed:
            yield
            return
        original: Any = None if hooked_transformer else model.original_model
        owners = [model] if original is None else [model, original]  # a bridge does not count its model's own modules
        training = [module for owner in owners for module in owner.modules() if module.training]
        config = getattr(original, "config", None)
        asked = [name for name in _OUTPUTS if getattr(config, name, False)]
        try:
            loan.borrowed = True
            keep_hook_points(model)
            for module in training:
                module.training = False
            for name in asked:
                setattr(config, name, False)
            if not any(point.fwd_hooks for point in hook_points(model).values()):
                check_final_logits(model)
            _warn_of_shortened_products(model, loan)
            yield
        finally:
            for module in training:
                module.training = True
            for name in asked:
                setattr(config, name, True)
            torch.set_grad_enabled(gradients)
            forget_hook_points(model)
            loan.borrowed = False


def _warn_of_shortened_products(model: HookedModel, loan: Loan) -> None:
    """Say once for each model that figures will not be those of float32."""
    if (precision := shortened_products(model)) and not loan.warned:
        loan.warned = True
        _log.warning(
            "torch is set to compute the matrix products of float32 models in %s, so that figures agree with float32, "
            "and with those of other machines, to about three digits; torch.set_float32_matmul_precision('highest') "
            "makes them exact, docs/performance.md has the differences",
            precision,
        )
