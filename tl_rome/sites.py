"""Where things are in a TransformerLens model: its hook points, and what its classes and versions name differently.

Two classes are supported: HookedTransformer (TransformerLens 3.9) and TransformerBridge (3.9 and 4.x). This file and
`running.matrices` are the only ones that know the names of their hook points and weights; `running.forward` is the only
one that knows how their blocks are called.
"""

import difflib
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_rome.errors import InputError, UnsupportedModelError

EMBED = "hook_embed"
"""Hook point of the token embeddings, before positions are added."""

_BLOCK = re.compile(r"blocks\.\d+\.")
"""How the name of a block's hook point begins."""

ActivationHook = Callable[..., Tensor | None]
"""A TransformerLens forward hook: called as `hook_function(activation, hook=hook_point)`; may return a replacement."""


@runtime_checkable
class HookedModel(Protocol):
    """What this package asks of a model: HookedTransformer and TransformerBridge both have it."""

    cfg: Any
    tokenizer: Any
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:  # a bridge declares neither `blocks` nor its other parts
            ...
    else:
        blocks: Any

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on tokens [batch, pos] and return logits [batch, pos, d_vocab]."""
        ...


def is_hooked_transformer(model: Any) -> bool:
    """Whether the model is a HookedTransformer; False means TransformerBridge.

    Raises:
        UnsupportedModelError: If it is neither.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    if "HookedTransformer" in names:
        return True
    if "TransformerBridge" in names:
        return False
    raise UnsupportedModelError(
        f"{type(model).__name__} is neither a HookedTransformer nor a TransformerBridge; "
        "wrap it with tl_rome.load_model(name_or_folder) or TransformerBridge.boot_transformers"
    )


def check_layer(model: HookedModel, layer: int) -> int:
    """Return the layer if the model has it.

    Raises:
        InputError: If it is outside 0 ... n_layers - 1.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise InputError(f"layer {layer} is out of range: this model has layers 0 to {model.cfg.n_layers - 1}")
    return layer


_tables: weakref.WeakKeyDictionary[HookedModel, Mapping[str, Any]] = weakref.WeakKeyDictionary()
"""Hook points of the models that are being worked with."""


def hook_points(model: HookedModel) -> Mapping[str, Any]:
    """TransformerLens's hook points by name, other names of the same ones included.

    A bridge makes this table anew at every look, in milliseconds; between `keep_hook_points` and `forget_hook_points`
    it is made once.
    """
    known = _tables.get(model)
    return model.hook_dict if known is None else known


def keep_hook_points(model: HookedModel) -> None:
    """Look the hook points up, and keep them: nobody but this package has the model for a while."""
    _tables[model] = model.hook_dict


def forget_hook_points(model: HookedModel) -> None:
    """Look them up at every use again."""
    _tables.pop(model, None)


def check_hooks(model: HookedModel, names: Iterable[str]) -> list[str]:
    """Return the hook names if the model has such hook points.

    Raises:
        InputError: If it lacks one, naming the closest ones that exist.
    """
    known = hook_points(model)
    checked = list(names)
    for name in checked:
        if name not in known:
            close = ", ".join(_closest(name, known)) or "none"
            raise InputError(f"this model has no hook point {name!r}; closest: {close}")
    return checked


def _closest(name: str, known: Iterable[str]) -> list[str]:
    """Hook points of a similar name, in the same block or outside the blocks, without what all names have in common."""
    block = _BLOCK.match(name)
    start = block[0] if block else "blocks.0."
    names = [other for other in known if other.startswith(start) or not _BLOCK.match(other)]
    short = {other.removeprefix(start).replace("hook_", ""): other for other in names}
    close = difflib.get_close_matches(name.removeprefix(start).replace("hook_", ""), short, n=4, cutoff=0.5)
    return [short[other] for other in close]


@lru_cache(maxsize=4096)
def component_name(component: str) -> str:
    """The one spelling of a component: "z", "hook_z" and "attn.hook_z" are "attn.hook_z", "hook_mlp_out" is "mlp_out".

    Args:
        component: A hook point of a block by TransformerLens's shorthand, see its `get_act_name`, or by its name inside
            the block, with or without `hook_`. A full name, as in "blocks.5.attn.hook_z", is its own spelling.
    """
    if "." in component:
        return component
    from transformer_lens.utilities.components_utils import get_act_name

    name = get_act_name(component.removeprefix("hook_"), "n").removeprefix("blocks.n.")
    return name.removeprefix("hook_")


@dataclass(frozen=True)
class Site:
    """A component of one layer, named as TransformerLens names its hook points.

    Args:
        component: "resid_post", "mlp_out", "attn_out", or any other hook point of a block, in any of the spellings that
            `component_name` makes one.
        layer: Block index from 0.

    Raises:
        InputError: If the component is the full name of another block's hook point.
    """

    component: str
    layer: int

    def __post_init__(self) -> None:
        component, block = component_name(self.component), f"blocks.{self.layer}."
        inside = component.removeprefix(block)
        if _BLOCK.match(inside):
            raise InputError(f"{self.component!r} is not a hook point of layer {self.layer}; name it inside its block")
        object.__setattr__(self, "component", component_name(inside))

    @property
    def hook(self) -> str:
        """Full hook name, such as `blocks.5.hook_mlp_out`."""
        return f"blocks.{self.layer}.{self.component if '.' in self.component else 'hook_' + self.component}"

    def check(self, model: HookedModel) -> str:
        """The hook name, checked against the model.

        Raises:
            InputError: If the layer is out of range or the hook point does not exist.
        """
        check_layer(model, self.layer)
        return check_hooks(model, [self.hook])[0]


@torch.no_grad()
def token_embeddings(model: HookedModel, tokens: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens d_model"]:
    """Rows of the token embedding W_E as the checkpoint has them, whether the unembedding is tied to it or not.

    Gemma models multiply what they look up by sqrt(d_model); a HookedTransformer of one holds W_E with that factor in
    it, a bridge without. Here it is left out.

    Returns:
        float64, on the CPU.
    """
    weight = model.W_E
    rows = weight[tokens.to(weight.device)].cpu().double()
    architecture = getattr(model.cfg, "original_architecture", None) or ""
    scaled = is_hooked_transformer(model) and architecture.startswith("Gemma")
    return rows / model.cfg.d_model**0.5 if scaled else rows
