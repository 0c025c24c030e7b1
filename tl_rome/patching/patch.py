"""What is patched: a hook point in every layer, windows of layers, and all or parts of its features.

A *cell* of a trace is one window, one position and one unit. Most hook points are [batch, pos, features ...]; those of
attention patterns are [batch, head, query, key], where the query is the position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.patching.config import Clipping, Sever, Units, check_choice
from tl_rome.patching.windows import layer_window
from tl_rome.sites import HookedModel, Site, check_hooks, component_name, hook_points

_QUERY_FIRST = ("attn.hook_pattern", "attn.hook_attn_scores")
"""Hook points whose axis 2, not 1, is the position."""
_IN_PLACE = "resid_mid"
"""A bridge hooks the middle of a block as its second norm's input, which the stream passes by. Written in place, the
state changes in the stream too, as in HookedTransformer."""
SEVERED: dict[Sever, str] = {"mlp": "mlp_out", "attn": "attn_out"}
"""What a severed trace freezes, by its name."""


Places = Int[Tensor, "3 _"]
"""Where a patch is written: group of rows, position and unit of each place, on the states' device: one that had to be
moved there would wait for all that runs."""


@dataclass(frozen=True)
class Cell:
    """The layers that are patched together, and the unit."""

    window: range
    unit: int


@dataclass(frozen=True, eq=False)
class Patch:
    """Hook points to patch and the cells to patch them in.

    Attributes:
        component: In the spelling of `component_name`, or a full name.
        points: Hook name by layer; a hook point outside the blocks stands alone, as layer 0.
        windows: Layers patched together, for each row of the result.
        units: Indices of each unit's features, or None for whole states.
        masks: Which features each unit has, on the device of the states.
        labels: Name of each unit.
        frozen: Hook name by layer of what is kept as in the base run at the patched position.
    """

    component: str
    points: dict[int, str]
    windows: tuple[range, ...]
    units: tuple[Int[Tensor, " _"], ...] | None = None
    masks: Bool[Tensor, "units features"] | None = None
    labels: tuple[str, ...] = ()
    frozen: dict[int, str] = field(default_factory=dict)

    @classmethod
    def make(
        cls, model: HookedModel, component: str, width: int, clipping: Clipping, sever: Sever | None = None
    ) -> "Patch":
        """Name the hook points of a component.

        Args:
            model: The model.
            component: A component, see `component_name`, or a full hook name, which is patched alone.
            width: Layers per window.
            clipping: See `layer_window`.
            sever: "mlp" or "attn", or None.

        Raises:
            InputError: If the hook point does not exist, the width is below 1, or a component would sever itself.
        """
        n_layers = model.cfg.n_layers
        layer_window(0, n_layers, width, clipping)
        component = component if component in (known := hook_points(model)) else component_name(component)
        frozen = {}
        if sever is not None:
            check_choice("sever", sever, Sever)
            if component.startswith(sever):
                raise InputError(f"{component!r} cannot be patched while {sever!r} is frozen; sever the other one")
            frozen = {layer: Site(SEVERED[sever], layer).hook for layer in range(n_layers)}
        if component in known or component.startswith("blocks."):
            check_hooks(model, [component])
            layer = int(component.split(".")[1]) if component.startswith("blocks.") else 0
            return cls(component, {layer: component}, (range(layer, layer + 1),), frozen=frozen)
        points = {layer: Site(component, layer).hook for layer in range(n_layers)}
        check_hooks(model, points.values())
        windows = tuple(layer_window(layer, n_layers, width, clipping) for layer in range(n_layers))
        return cls(component, points, windows, frozen=frozen)

    @property
    def in_blocks(self) -> bool:
        """Whether the hook points lie in the model's blocks."""
        return all(name.startswith("blocks.") for name in self.points.values())

    @property
    def kind(self) -> str:
        """The component, without block number."""
        return self.component.split(".", 2)[-1] if self.component.startswith("blocks.") else self.component

    @property
    def cells(self) -> list[Cell]:
        """All cells of one position: window by window, units innermost."""
        return [Cell(window, unit) for window in self.windows for unit in range(len(self.units or "x"))]

    @property
    def names(self) -> list[str]:
        """Hook points that are patched, and those that are frozen."""
        return [*self.points.values(), *self.frozen.values()]

    def split(self, units: Units, state: Float[Tensor, "features ..."]) -> "Patch":
        """The same patch of parts of each state, as `split_units` does it of one like this."""
        indices, labels = split_units(units, state.shape, self.component)
        if indices is None:
            return self
        masks = torch.zeros(len(indices), len(state), dtype=torch.bool)
        for mask, chosen in zip(masks, indices, strict=True):
            mask[chosen] = True
        return replace(self, units=indices, masks=masks.to(state.device), labels=labels)

    def by_layer(self, scores: Float[Tensor, "cell pos"]) -> Float[Tensor, "layer pos *unit"]:
        """Scores of `cells`, laid out as results are."""
        if not self.labels:
            return scores
        return rearrange(scores, "(layer unit) pos -> layer pos unit", unit=len(self.labels))

    def states(self, activation: Tensor) -> Float[Tensor, "rows pos ..."]:
        """A view of an activation with positions on axis 1.

        Raises:
            InputError: If it has no axes for rows, positions and features.
        """
        axis = 2 if self.kind in _QUERY_FIRST else 1
        if activation.ndim < axis + 2:
            raise InputError(f"{self.component!r} has shape {tuple(activation.shape)}, without positions to patch")
        return activation.movedim(axis, 1)

    def write(
        self,
        activation: Tensor,
        places: Places,
        value: Float[Tensor, "samples pos ..."],
        n_pos: int,
    ) -> Tensor:
        """Write values into some groups of rows of a copy, and return it.

        Args:
            activation: What the hook point shows; rows are groups of `len(value)`.
            places: Where to write.
            value: What to write, for each row of a group, at the activation's positions or more before them.
            n_pos: Positions that the activation should have.

        Raises:
            UnsupportedModelError: If it has another number of positions.
        """
        if not self.kind.endswith(_IN_PLACE):
            activation = activation.clone()
        states = self.states(activation).unflatten(0, (-1, len(value)))
        if states.shape[2] != n_pos:
            raise UnsupportedModelError(f"{self.component} shows {states.shape[2]} positions where {n_pos} are run")
        # A pattern has as many keys as the run has positions.
        self.put(states, places, value[:, -n_pos:, ..., : states.shape[-1]])
        return activation

    def put(
        self,
        states: Float[Tensor, "groups samples pos ..."],
        places: Places,
        value: Float[Tensor, "samples pos ..."],
    ) -> None:
        """Write values into states, in place: of each place its unit's features, at its position."""
        group, position, unit = places.to(states.device)
        new = value[:, position].transpose(0, 1)
        if self.masks is not None:
            mask = self.masks.to(states.device)[unit]
            mask = mask.reshape(len(unit), 1, -1, *[1] * (new.ndim - 3))
            new = torch.where(mask, new, states[group, :, position])
        states[group, :, position] = new


def split_units(
    units: Units, features: Sequence[int], component: str
) -> tuple[tuple[Int[Tensor, " _"], ...] | None, tuple[str, ...]]:
    """Indices and label of each unit.

    Args:
        units: How to split the first feature axis.
        features: Shape of one state: (heads, d_head) of a `hook_z`, (d_mlp,) of a `hook_post`.
        component: Named in errors.

    Raises:
        InputError: If the features cannot be split so.
    """
    if units is None:
        return None, ()
    if units == "heads":
        if len(features) < 2:
            raise InputError(f"{component!r} has no heads; split it into groups of features, as in units=64")
        units = 1
    if isinstance(units, str):
        raise InputError(f"units {units!r} is unknown; give 'heads', a group size, or lists of indices")
    size = features[0]
    if isinstance(units, int):
        if not 1 <= units <= size:
            raise InputError(f"units of {units} do not fit {component!r}, which has {size} features")
        units = [range(start, min(start + units, size)) for start in range(0, size, units)]
    if not units or not all(len(group) and 0 <= min(group) and max(group) < size for group in units):
        raise InputError(f"units {units} do not name features 0 to {size - 1} of {component!r}")
    labels = tuple(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in units)
    return tuple(torch.tensor(list(group)) for group in units), labels
