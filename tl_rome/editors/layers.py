"""Which layer to edit: the one that the caller names, else a published one, else that of a simple rule.

The sources edit where causal tracing peaks; `model_defaults` has their layers. For any other model trace some prompts
and pass the suggestion; without one the layer a quarter of the way up is edited.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from tl_rome.editors.model_defaults import find_defaults
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel, check_layer


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


def default_layer(model: HookedModel) -> int:
    """Layer to edit: that of `model_defaults` where it has one, else a quarter of the way up (floor of n_layers / 4).

    Args:
        model: Only its name and its shape are looked at.
    """
    return _default_layer(model)[0]


def choose_layer(model: HookedModel, layer: LayerChoice, covariance: HasLayer | None = None) -> tuple[int, str]:
    """The layer to edit, and why this one, for the receipt.

    Args:
        model: Left as found.
        layer: What the caller asked for.
        covariance: Key statistics that the caller gave; their layer is taken where `layer` is None.

    Raises:
        InputError: If the layer is out of range or not a `LayerChoice`; or as the function that finds one does.
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
    return _default_layer(model)


def _default_layer(model: HookedModel) -> tuple[int, str]:
    found = find_defaults(model)
    if found is None or found.row.layer is None:
        return model.cfg.n_layers // 4, "a quarter of the way up"
    return found.row.layer, found.guess or f"known for {found.row.names[0]}"
