"""What public functions and classes are given, checked against their annotations before any work is done.

`guard` does this for everything that a package exports, in one place; `guarded` for a single function or class. What is
of another type is refused with its name, and so is a number outside the `Range` of its annotation. What Python writes
otherwise is taken for what is meant: numpy's numbers, arrays and lists for sequences, strings for paths.

Code inside the package may be called past this: it is the border that is guarded, so that nothing is checked twice.
"""

import functools
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import jaxtyped
from torch import nn

from tl_rome.errors import ArgumentTypeError, InputError, TLRomeError, UnsupportedModelError
from tl_rome.sites import HookedModel, is_hooked_transformer

_Public = TypeVar("_Public")
_MOST = 2**63 - 1
"""Largest integer that torch takes; not worth a word in messages."""
_LONGEST_NAME = 255
"""Bytes of a file's name that usual file systems allow."""
_REMEDIES = {
    "Fact": "make one with tl_rome.Fact.from_prompt(prompt, subject, target)",
    "EditRequest": "make one with fact.rewrite(target_new)",
    "HookedModel": "load one with tl_rome.load_model(name)",
    "Generator": "make one with torch.Generator().manual_seed(0)",
}
"""How to come by an object, by its type."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, written into its annotation; NaN and infinity are outside of all of them."""

    least: float | int = -math.inf
    """Smallest value, itself allowed."""
    most: float | int = math.inf
    """Largest value, itself allowed."""
    above: float | int = -math.inf
    """Allowed only above this."""
    below: float | int = math.inf
    """Allowed only below this."""

    def check(self, name: str, value: float | int) -> None:
        """Refuse a number outside.

        Raises:
            InputError: If it is.
        """
        finite = -math.inf < value < math.inf
        if not (finite and self.least <= value <= self.most and self.above < value < self.below):
            raise InputError(f"{name} is {value}; give {self}")

    def __str__(self) -> str:
        bounds = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        words = [f"{word} {bound}" for word, bound in bounds.items() if math.isfinite(bound) and bound != _MOST]
        return f"a number {' and '.join(words)}" if words else "a finite number"


Count = Annotated[int, Range(1, _MOST)]
"""How many, at least one."""
Whole = Annotated[int, Range(0, _MOST)]
"""How many, perhaps none."""
Seed = Annotated[int, Range(-(2**63), 2**64 - 1)]
"""What torch's generators can be seeded with."""
Finite = Annotated[float, Range()]
"""A number that is neither NaN nor infinite."""
Positive = Annotated[float, Range(above=0)]
"""A number above 0."""
NotNegative = Annotated[float, Range(0)]
"""A number of at least 0."""
Share = Annotated[float, Range(above=0, below=1)]
"""A number between 0 and 1, neither included."""


def guard(package: str) -> None:
    """Make every function and class that a package exports check its arguments.

    A function is replaced where it is defined too, so that it can be pickled by name.
    """
    exported = vars(sys.modules[package])
    for name, value in list(exported.items()):
        if name.startswith("_") or not getattr(value, "__module__", "").startswith("tl_rome."):
            continue
        if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, BaseException)):
            exported[name] = guarded(value)
            setattr(sys.modules[value.__module__], value.__name__, exported[name])


def guarded(public: _Public) -> _Public:
    """Make a function, or a class in its constructor and public methods, check its arguments."""
    if not inspect.isclass(public):
        return _checked(public)
    for owner in public.__mro__:
        if owner.__module__.startswith("tl_rome.") and not getattr(owner, "_is_protocol", False):
            for name, method in list(vars(owner).items()):
                if name.startswith("_") and name not in ("__init__", "__call__"):
                    continue
                if isinstance(method, classmethod | staticmethod):
                    setattr(owner, name, type(method)(_checked(method.__func__)))
                elif inspect.isfunction(method):
                    setattr(owner, name, _checked(method))
    return public


def _checked(function: Any) -> Any:
    """The function, with a check of its arguments in front; annotations are read at the first call."""
    if getattr(function, "_guarded", None) is not None:
        return function

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        signature, hints = expected()
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:  # Python says better what is missing or too much
            return function(*args, **kwargs)
        with jaxtyped("context"):  # names of axes mean nothing beyond one call
            for name, value in given.arguments.items():
                if name in hints:
                    given.arguments[name] = conform(name, value, hints[name])
        return function(*given.args, **given.kwargs)

    @functools.cache
    def expected() -> tuple[inspect.Signature, dict[str, Any]]:
        signature = inspect.signature(function)
        try:
            hints = get_type_hints(inspect.unwrap(function), include_extras=True)
        except NameError:  # a type that is imported for type checkers only
            hints = {name: hint for name, hint in function.__annotations__.items() if not isinstance(hint, str)}
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        single = [name for name, parameter in signature.parameters.items() if parameter.kind not in several]
        return signature, {name: hints[name] for name in single if name in hints}

    vars(checking)["_guarded"] = function
    return checking


def conform(name: str, value: Any, hint: Any) -> Any:
    """What is given, as its annotation has it.

    Args:
        name: What to call it in messages.
        value: Any object.
        hint: Any annotation; one that this file does not know is not checked.

    Raises:
        ArgumentTypeError: If it is of another type.
        InputError: If it is a number out of its range, an unknown choice, one string for several, or no usable path.
        UnsupportedModelError: If it is no model that this package can work with.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = conform(name, value, args[0])
        for bounds in args[1:]:
            bounds.check(name, found)
        return found
    if origin in (Union, UnionType):
        return _conform_to_one(name, value, hint)
    if origin is Literal:
        return _choice(name, value, hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(name, value, hint)
    if isinstance(origin, type) and issubclass(origin, Iterable) and origin is not type:
        return _items(name, value, hint, origin)
    if origin is Callable or hint is Callable:
        return value if callable(value) else _refuse(name, value, hint)
    if hint in _SIMPLE:
        return _SIMPLE[hint](name, value)
    if hint is Any or not isinstance(hint, type):
        return value
    fits = _has_members(value, hint) if getattr(hint, "_is_protocol", False) else isinstance(value, hint)
    return value if fits else _refuse(name, value, hint)


def _conform_to_one(name: str, value: Any, hint: Any) -> Any:
    """What is given, as the first alternative has it that fits; else the error that says most."""
    alternatives = get_args(hint)
    if value is None and NoneType in alternatives:
        return None
    if Path in alternatives and isinstance(value, str | os.PathLike):
        found = _path(name, value)
        return value if isinstance(value, str) and str in alternatives else found
    problem: TLRomeError | None = None
    for alternative in alternatives:
        try:
            return conform(name, value, alternative)
        except ArgumentTypeError as error:
            if not str(error).startswith(f"{name} "):  # an item of the right kind of collection
                problem = problem or error
        except TLRomeError as error:
            problem = problem or error
    raise problem or _mismatch(name, value, hint)


def _choice(name: str, value: Any, hint: Any) -> Any:
    choices = get_args(hint)
    if not isinstance(value, tuple({type(choice) for choice in choices})):
        _refuse(name, value, hint)
    if value not in choices:
        raise InputError(f"{name} {value!r} is unknown; choose {' or '.join(map(repr, choices))}")
    return value


def _mapping(name: str, value: Any, hint: Any) -> Any:
    if not isinstance(value, Mapping):
        _refuse(name, value, hint)
    of_key, of_item = get_args(hint) or (Any, Any)
    found = {
        conform(f"a key of {name}", key, of_key): conform(f"{name}[{key!r}]", item, of_item)
        for key, item in value.items()
    }
    same = all(map(_is, found, value)) and all(map(_is, found.values(), value.values()))
    return value if same else found


def _items(name: str, value: Any, hint: Any, origin: type) -> Any:
    """Sequences and other iterables; an iterator is taken as it is, since looking at it would use it up."""
    of_items = get_args(hint) or (Any,)
    if isinstance(value, str | bytes):
        if of_items[0] not in (str, Any):
            _refuse(name, value, hint)
        raise InputError(f"{name} is one string ({value[:40]!r}); give a list of strings, as in [text]")
    if hasattr(value, "tolist") and not isinstance(value, Sequence):
        value = value.tolist()  # an array, a tensor or a column
    wanted = Sequence if origin in (tuple, list) else origin
    if not isinstance(value, wanted):
        _refuse(name, value, hint)
    if not isinstance(value, Collection):
        return value
    if origin is tuple and of_items[-1] is not Ellipsis:
        if len(value) != len(of_items):
            raise InputError(f"{name} has {len(value)} items; give {len(of_items)}, as {_words(hint)}")
        hints: Iterable[Any] = of_items
    else:
        hints = (of_items[0] for _ in value)
    found = [conform(f"{name}[{place}]", *pair) for place, pair in enumerate(zip(value, hints, strict=True))]
    if origin is tuple:
        return value if isinstance(value, tuple) and all(map(_is, found, value)) else tuple(found)
    return value if all(map(_is, found, value)) else found


def _is(one: object, other: object) -> bool:
    return one is other


def _integer(name: str, value: Any) -> Any:
    if not isinstance(value, Integral) or isinstance(value, bool):
        _refuse(name, value, int)
    return value if isinstance(value, int) else int(value)


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, Real) or isinstance(value, bool):
        _refuse(name, value, float)
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{name} has too many digits for a number of 64 bits; give a smaller one") from None


def _truth(name: str, value: Any) -> Any:
    return bool(value) if isinstance(value, bool | np.bool_) else _refuse(name, value, bool)


def _path(name: str, value: Any) -> Path:
    """A path that files could have, whether one is there or not."""
    if not isinstance(value, str | os.PathLike):
        _refuse(name, value, Path)
    text = os.fspath(value)
    if not text:
        raise InputError(f"{name} is empty; name a file or a folder")
    try:
        longest = max(len(os.fsencode(part)) for part in re.split(r"[/\\]", text))
    except UnicodeEncodeError as error:
        raise InputError(f"{name} {text!r} cannot be the name of a file ({error.reason}); name another") from None
    if "\0" in text or longest > _LONGEST_NAME:
        problem = "has a NUL character" if "\0" in text else f"has a part of {longest} bytes, more than {_LONGEST_NAME}"
        raise InputError(f"{name} {text[:60]!r} {problem}; name a file or a folder")
    return Path(value)


def _model(name: str, value: Any) -> Any:
    if isinstance(value, nn.Module):
        is_hooked_transformer(value)
    if not _has_members(value, HookedModel):
        _refuse(name, value, HookedModel)
    if next(value.parameters()).is_meta:
        raise UnsupportedModelError(f"{name} has weights on the meta device, without values; load it on a real one")
    return value


_SIMPLE: dict[Any, Callable[[str, Any], Any]] = {
    **{int: _integer, float: _number, bool: _truth, Path: _path},
    **{HookedModel: _model, object: lambda name, value: value},
}
"""Types whose objects come in several forms, or are looked at more closely."""


def _has_members(value: Any, protocol: Any) -> bool:
    """Whether an object has what a protocol asks for; an instance check would not see the parts of a torch module."""
    named = {*protocol.__annotations__, *vars(protocol)}
    return all(hasattr(value, name) for name in named if not name.startswith("_") or name == "__call__")


def _refuse(name: str, value: Any, hint: Any) -> Any:
    raise _mismatch(name, value, hint)


def _mismatch(name: str, value: Any, hint: Any) -> ArgumentTypeError:
    shown = f" ({repr(value)[:60]})" if isinstance(value, str | int | float | Path) else ""
    words = _words(hint)
    remedy = next((f"; {_REMEDIES[word]}" for word in re.findall(r"\w+", words) if word in _REMEDIES), "")
    return ArgumentTypeError(f"{name}{shown} is {_with_article(type(value).__name__)}, not {words}{remedy}")


def _words(hint: Any) -> str:
    """An annotation for people: "an int", "str or Path or None", "Sequence[Fact]"."""
    if get_origin(hint) is Annotated:
        return _words(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(part).removeprefix("a ").removeprefix("an ") for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if hint is NoneType:
        return "None"
    if get_origin(hint) is Callable:
        return "a function"
    if isinstance(hint, type) and get_origin(hint) is None:
        return _with_article(hint.__name__)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(hint))


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
