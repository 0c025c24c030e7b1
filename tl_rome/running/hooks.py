"""Putting hooks on a model for a time.

They go to TransformerLens's hook points themselves: its own `hooks()` walks a bridge's table of hook points at every
call, and an interrupt of its set-up leaves hooks behind.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from tl_rome.errors import UnsupportedModelError
from tl_rome.running.interrupts import reliable
from tl_rome.running.loans import lent
from tl_rome.sites import ActivationHook, HookedModel, check_hooks, hook_points, is_hooked_transformer


@dataclass(frozen=True)
class InputOf:
    """A module whose only argument is meant, not its output."""

    module: nn.Module


Hook = tuple[str | nn.Module | InputOf, ActivationHook]
"""Where, by the name of a hook point or as a module whose output is meant, and what is called there."""
Hooks = Sequence[Hook]


@reliable
def hooked(model: HookedModel, hooks: Hooks) -> Iterator[None]:
    """Add hooks to a model for the length of the context; whatever ends it, they are gone.

    Raises:
        InputError: If a hook point does not exist.
        UnsupportedModelError: If one exists, but TransformerLens does not let it be used.
    """
    remove: list[Callable[[], None]] = []
    with lent(model):
        check_hooks(model, [place for place, _ in hooks if isinstance(place, str)])
        points = hook_points(model)
        try:
            for place, function in hooks:
                if isinstance(place, str):
                    remove.append(_add(model, points[place], function))
                elif isinstance(place, InputOf):
                    remove.append(place.module.register_forward_pre_hook(_on_input(function)).remove)
                else:
                    remove.append(place.register_forward_hook(_on_output(function)).remove)
            yield
        finally:
            for each in reversed(remove):
                each()


def _add(model: HookedModel, point: Any, function: ActivationHook) -> Callable[[], None]:
    """Add a hook to a hook point; the function returned takes it away again."""
    if not is_hooked_transformer(model):  # which has such hook points fire never, see `read`
        own = point.name or ""
        try:
            model.check_hooks_to_add(*((point, own, function) if _takes_points(type(model)) else (own,)))
        except ValueError as error:
            raise UnsupportedModelError(str(error)) from error
    point.add_hook(function)
    handle = point.fwd_hooks[-1]

    def remove() -> None:
        handle.hook.remove()
        point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]

    return remove


@lru_cache
def _takes_points(bridge: type) -> bool:
    """Whether a bridge's check takes the hook point, its name and the function, as from TransformerLens 4 on."""
    return "hook_point" in inspect.signature(bridge.check_hooks_to_add).parameters  # type: ignore[attr-defined]


def _on_output(function: ActivationHook) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
    """A hook of torch for a module's output."""
    return lambda module, inputs, output: function(output, hook=module)


def _on_input(function: ActivationHook) -> Callable[[nn.Module, tuple[Tensor]], Tensor | None]:
    """A hook of torch for a module's argument."""
    return lambda module, inputs: function(*inputs, hook=module)
