"""What a value is, as JSON: two that may act differently are described differently, in every process alike.

Functions are told apart by their code, defaults and closure, and by the module globals that they name; objects by
their class and by the state that pickling would keep. Pickles themselves are never made. A value of which that is not
known, such as a generator or a lock, is marked in its description, see `undescribed`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property, partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import model_settings

_UNKNOWN = "not described"
_LONG = 100
"""Elements of a collection from which on a digest stands for them."""
_OURS = "tl_rome."


def describe(value: Any) -> Any:
    """A value as plain JSON types; `undescribed` finds what could not be described.

    An object is described by what its method `identity()` returns, if it has one; by its `digest`, if that is a text.
    Otherwise by its class and state.
    """
    try:
        return _Describer().describe(value)
    except RecursionError:
        return _unknown(value)


def undescribed(described: Any) -> list[str]:
    """Names of the classes inside a description whose objects could not be described."""
    if isinstance(described, Mapping):
        found = [described[_UNKNOWN]] if _UNKNOWN in described else []
        return found + [name for part in described.values() for name in undescribed(part)]
    return [name for part in described for name in undescribed(part)] if isinstance(described, list) else []


class _Describer:
    """Describes one value and what it holds; functions and classes once, the others wherever they occur."""

    def __init__(self) -> None:
        self._inside: list[Any] = []
        self._done: list[Any] = []

    def describe(self, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return repr(value)
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()  # half characters in words
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, ModuleType):
            return value.__name__
        met = self._done if isinstance(value, FunctionType | type) else self._inside
        place = next((place for place, other in enumerate(met) if other is value), None)
        if place is not None:
            return {"again": place}
        met.append(value)
        found = self._describe(value)
        if met is self._inside:
            met.pop()
        return found

    def _describe(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _shortened({self._key(key): self.describe(each) for key, each in value.items()})
        if isinstance(value, list | tuple):
            return _shortened([self.describe(each) for each in value])
        if isinstance(value, set | frozenset):
            return _shortened(sorted(map(describe, value), key=json.dumps))
        if isinstance(value, bytes | bytearray):
            return {"digest": hashlib.sha256(value).hexdigest()[:16]}
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, type):
            return self._class(value)
        if callable(identity := getattr(value, "identity", None)):
            return self.describe(identity())
        if isinstance(getattr(value, "digest", None), str):
            return {"digest": value.digest, "layer": getattr(value, "layer", None)}
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, CodeType):
            return self._code(value)
        if isinstance(value, partial):
            return {"editor": self.describe(value.func), **self._filled(args=value.args, keywords=value.keywords)}
        if isinstance(value, nn.Module) and isinstance(value, HookedModel):
            return model_settings(value)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        """An object by its class and state, as pickling takes it apart."""
        try:
            parts = value.__reduce_ex__(4)
        except Exception:  # classes raise what they like; such an object cannot be copied either
            return _unknown(value)
        if isinstance(parts, str):
            return {"editor": parts, **self._filled(wrapped=getattr(value, "__wrapped__", None))}
        maker, arguments, state, *items = (*parts, *[None] * 3)[:5]
        if getattr(maker, "__name__", "") == "__newobj__" and arguments == (type(value),) and items == [None, None]:
            if state is None or isinstance(state, dict):
                kept = {name: each for name, each in (state or {}).items() if not _is_cached(value, name)}
                made = self._class(type(value))
                return {"editor": type(value).__qualname__, **made, **{k: self.describe(x) for k, x in kept.items()}}
        each = [None if part is None else list(part) for part in items]
        return {"editor": type(value).__qualname__, "made": [self.describe(x) for x in (maker, arguments, state, each)]}

    def _function(self, function: FunctionType) -> dict[str, Any]:
        name, home = function.__qualname__, function.__module__ or ""
        if home.startswith(_OURS) and "<locals>" not in name:
            return {"editor": name}
        used = {key: function.__globals__[key] for key in sorted(_names(function.__code__) & {*function.__globals__})}
        known = {key: self._global(value, home) for key, value in used.items()}
        code = [self._code(function.__code__), {key: found for key, found in known.items() if not undescribed(found)}]
        defaults = {**dict(enumerate(function.__defaults__ or ())), **(function.__kwdefaults__ or {})}
        closure = dict(zip(function.__code__.co_freevars, map(_content, function.__closure__ or ()), strict=True))
        more = self._filled(closure=closure, defaults=defaults, attributes=vars(function))
        return {"editor": name, "digest": digest(code), **more}

    def _global(self, value: Any, home: str) -> Any:
        """What a function finds by name; another module's functions and classes are known by their names."""
        if isinstance(value, FunctionType | type) and value.__module__ != home:
            return f"{value.__module__}.{value.__qualname__}"
        return self.describe(value)

    def _code(self, code: CodeType) -> list[Any]:
        constants = self.describe(list(code.co_consts))
        return [code.co_code.hex(), constants, *map(list, (code.co_names, code.co_varnames, code.co_freevars))]

    def _class(self, cls: type) -> dict[str, Any]:
        """A class by the code and the settings of itself and of those that it is made of."""
        written = [base for base in cls.__mro__ if base is not object and not base.__module__.startswith(_OURS)]
        parts = [
            (name, self.describe(_plain_function(part)))
            for base in written
            for name, part in vars(base).items()
            if not name.startswith("__") or name == "__call__"
        ]
        return {"digest": digest([[name, part] for name, part in parts if not undescribed(part)])} if parts else {}

    def _filled(self, **parts: Any) -> dict[str, Any]:
        return {name: self.describe(part) for name, part in parts.items() if part}

    def _key(self, key: Any) -> str:
        described = self.describe(key)
        return described if isinstance(described, str) else json.dumps(described)


def _unknown(value: Any) -> dict[str, str]:
    return {_UNKNOWN: f"{type(value).__module__}.{type(value).__qualname__}"}


def _shortened(described: Any) -> Any:
    if len(described) < _LONG or undescribed(described):
        return described
    return {"digest": digest([described]), "elements": len(described)}


def _tensor(value: Tensor) -> Any:
    try:
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantised, on no device
        return _unknown(value)
    return digest([str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()])


def _names(code: CodeType) -> set[str]:
    """Names that a function and those inside it look up, attributes among them."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _plain_function(part: Any) -> Any:
    """The function of a property or of a static or class method."""
    wrapped = (getattr(part, name, None) for name in ("__func__", "fget", "func"))
    return next((each for each in wrapped if isinstance(each, FunctionType)), part)


def _is_cached(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), name, None), cached_property)
