"""Which layer to edit: what the caller says, else a published one, else a stated rule.

The sources edit where causal tracing peaks: layer 17 of GPT-2 XL (the published text counts from 1 and says 18), 12 of
GPT-2 L, 8 of GPT-2 M, 5 of GPT-J. This package measured 5 for SmolLM2-135M. For any other model trace some prompts and
hand in the suggestion; without one a quarter of the way up is edited.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from tl_rome.errors import InputError
from tl_rome.sites import HookedModel, check_layer

_KNOWN_LAYERS = {(48, 1600): 17, (36, 1280): 12, (24, 1024): 8, (28, 4096): 5, (30, 576): 5}
"""By (n_layers, d_model): GPT-2 XL, L and M and GPT-J from the sources, SmolLM2-135M from a sweep on COUNTERFACT."""


@runtime_checkable
class HasLayer(Protocol):
    """Anything that names a layer, such as the suggestion that causal tracing makes, or key statistics."""

    @property
    def layer(self) -> int:
        """Block index."""
        ...


LayerFinder = Callable[[HookedModel], HasLayer]
"""Finds a layer by looking at the model, as `tl_rome.find_layer` does by tracing facts."""

LayerChoice = int | HasLayer | LayerFinder | None
"""A layer, an object with a `.layer`, a function that finds one, or None for `default_layer`."""


def default_layer(n_layers: int, d_model: int) -> int:
    """Layer to edit: the published one where there is one, else a quarter of the way up (floor of n_layers / 4).

    Args:
        n_layers: Blocks of the model.
        d_model: Width of its residual stream.
    """
    return _KNOWN_LAYERS.get((n_layers, d_model), n_layers // 4)


def choose_layer(model: HookedModel, layer: LayerChoice, covariance: HasLayer | None = None) -> tuple[int, str]:
    """The layer to edit, and why this one, for the receipt.

    Args:
        model: Left as found.
        layer: What the caller said.
        covariance: Key statistics that the caller gave; theirs is the layer where nothing else was said.

    Raises:
        InputError: If the layer is out of range, or is none of these; and as a function that finds one does.
    """
    if callable(layer) and not isinstance(layer, HasLayer):
        layer = layer(model)
    if isinstance(layer, HasLayer):
        return check_layer(model, layer.layer), f"suggested: {layer}"
    if layer is not None and not isinstance(layer, int):
        raise InputError(f"layer is {layer!r}; give a number, tl_rome.find_layer, or what that function returned")
    if layer is not None:
        return check_layer(model, layer), "given"
    if covariance is not None:
        return check_layer(model, covariance.layer), "that of the covariance"
    shape = model.cfg.n_layers, model.cfg.d_model
    why = "known for a model of this size" if shape in _KNOWN_LAYERS else "a quarter of the way up"
    return check_layer(model, default_layer(*shape)), why
