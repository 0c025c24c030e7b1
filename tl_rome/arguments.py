"""What public functions and classes are given, checked against their annotations before any work is done.

`guard` does this for everything that a package exports, in one place; `guarded` for a single function or class. What is
of another type is refused with its name, and so is a number outside the `Range` of its annotation.

`help()` of a guarded class lists its fields with the strings under them, which Python itself drops; they are read from
the source when somebody asks.

Code inside the package may be called past this: it is the border that is guarded, so that nothing is checked twice.
"""

import ast
import functools
import inspect
import math
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from textwrap import dedent
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar, get_type_hints

from jaxtyping import jaxtyped

from tl_rome.annotations import conform
from tl_rome.errors import InputError

_Public = TypeVar("_Public")
_LATER = {"Axes": "matplotlib.axes", "Figure": "matplotlib.figure"}
"""Types of arguments that are imported for type checkers only, and where they are."""
_MOST = 2**63 - 1
"""Largest integer that torch takes; not worth a word in messages."""


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
    if isinstance(text := vars(public).get("__doc__"), str):
        public.__doc__ = _WithFields(text, public)  # type: ignore[assignment]
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
        signature, hints = inspect.signature(function), annotations(function)
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        single = [name for name, parameter in signature.parameters.items() if parameter.kind not in several]
        return signature, {name: hints[name] for name in single if name in hints}

    vars(checking)["_guarded"] = function
    return checking


def annotations(function: Any) -> dict[str, Any]:
    """Annotations by argument; types of other packages that are imported for type checkers only stand for anything."""
    function, later = inspect.unwrap(function), dict[str, Any]()
    arguments = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    while True:
        try:
            return get_type_hints(SimpleNamespace(__annotations__=arguments), function.__globals__, later, True)
        except NameError as error:
            name = str(error.name)
            later[name] = getattr(import_module(_LATER[name]), name) if name in _LATER else object


class _WithFields:
    """A class's docstring, which ends in its fields once somebody reads it."""

    def __init__(self, text: str, cls: type) -> None:
        self._text, self._cls = text, cls

    def __get__(self, instance: Any, owner: type) -> str:
        return self._whole

    @functools.cached_property
    def _whole(self) -> str:
        found: dict[str, str] = {}
        for base in reversed(self._cls.__mro__):
            if base.__module__.startswith("tl_rome."):
                found |= _described_fields(base)
        lines = [f"    {name}: {' '.join(text.split())}" for name, text in found.items()]
        return "\n".join([inspect.cleandoc(self._text), "", "Attributes:", *lines]) if lines else self._text


def _described_fields(cls: type) -> dict[str, str]:
    """The strings under the public fields of one class, by name and type; none where its source is not at hand."""
    try:
        (tree,) = ast.parse(dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str) and not field.target.id.startswith("_"):
                found[f"{field.target.id} ({ast.unparse(field.annotation)})"] = text
    return found
