"""Every public callable, found by what the packages export."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import tl_rome
from tl_rome import counterfact, editors, patching

OPTIONS = {"estimate_covariance": "estimate_covariances", "covariance_from_samples": "covariances_from_samples"}
"""Whose keyword-only parameters `**options` stands for."""
PACKAGES = (tl_rome, patching, editors, counterfact)
LEFT_OUT = {
    "evaluate_on_ray": "starts a cluster, which takes seconds; beneath it is `evaluate`",
    "to_patching_result": "of TransformerLens 4.3, which one leg has",
    "from_patching_result": "as above",
    "TLRomeError": "what is to be raised",
    "guard": "for packages alone",
    "Editor": "a protocol",
    "Editor.__call__": "of a protocol",
    "Rome.update_for": "takes what the editor alone makes",
    "Edit.apply_unchecked": "of a sequence that has checked",
    "BatchEdit.apply_unchecked": "of a sequence that has checked",
    "Mend.changes": "takes what the editor alone makes",
    "Mend.empty_network": "as above",
    "Ke.changes": "as above",
    "Ke.empty_network": "as above",
}


@dataclass(frozen=True)
class PublicCall:
    """A callable of the public surface."""

    name: str
    function: Callable[..., Any]
    cls: type | None = None
    """The class that it makes an object of, or of whose objects it is a method."""
    bound: bool = True
    """Whether it needs no `self`."""

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """By name, without `self` and those that take any number."""
        found = dict(inspect.signature(self.function).parameters)
        if self.name in OPTIONS:
            options = inspect.signature(getattr(editors, OPTIONS[self.name])).parameters.values()
            found |= {option.name: option for option in options if option.kind is option.KEYWORD_ONLY}
        return {
            name: parameter
            for name, parameter in found.items()
            if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }


def public_calls() -> dict[str, PublicCall]:
    """All of them by name, a method as `Class.method`."""
    found: dict[str, PublicCall] = {}
    for package in PACKAGES:
        for name in getattr(package, "__all__", vars(package)):
            value = getattr(package, name)
            is_ours = getattr(value, "__module__", "").startswith("tl_rome.")
            if name.startswith("_") or isinstance(value, ModuleType) or not (is_ours and callable(value)):
                continue
            if not inspect.isclass(value) and not inspect.isfunction(value):
                continue
            found[name] = PublicCall(name, value, value if inspect.isclass(value) else None)
            if inspect.isclass(value):
                found |= {call.name: call for call in _methods(name, value)}
    return {name: call for name, call in sorted(found.items()) if name not in LEFT_OUT}


def _methods(name: str, cls: type) -> Iterator[PublicCall]:
    for attribute in dir(cls):
        if attribute.startswith("_") and attribute != "__call__":
            continue
        value = inspect.getattr_static(cls, attribute)
        if isinstance(value, (classmethod, staticmethod)):
            yield PublicCall(f"{name}.{attribute}", getattr(cls, attribute))
        elif inspect.isfunction(value) and attribute not in getattr(cls, "__dataclass_fields__", ()):
            yield PublicCall(f"{name}.{attribute}", value, cls, bound=False)
