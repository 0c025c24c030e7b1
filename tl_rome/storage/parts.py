"""Taking files apart: JSON values as the types that they should have, and errors that name the file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxtyping import jaxtyped

from tl_rome.errors import InputError, StorageError, TLRomeError
from tl_rome.storage.text import brief

_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What goes wrong where a file does not hold what it should; RecursionError is a RuntimeError."""


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Blame the file for whatever goes wrong while it is taken apart.

    Args:
        path: The file.
        what: What it should hold, such as "a trace".

    Raises:
        StorageError: If the block raises an error of another kind than this package's, or one of input.
    """
    try:
        yield
    except _FAULTS as error:
        if isinstance(error, TLRomeError) and not isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise StorageError(f"{path} lacks part of {what} or is damaged ({reason}); make it again") from error


def read_as(kind: Any, value: Any, where: str = "it") -> Any:
    """A JSON value as a type: dataclasses from objects, tuples from lists, numbers from whole ones.

    Args:
        kind: A type, as annotations write it; what is neither a dataclass, a tuple, a mapping, a union, a `Literal` nor
            a plain type of JSON must be there already, as tensors are.
        value: What the file says.
        where: What to call it in errors.

    Raises:
        ValueError: If it is of another type, or a dataclass has another set of fields; the message says where.
    """
    if kind is Any:
        return value
    if kind is float and (type(value) is float or (type(value) is int and value.bit_length() < 1000)):
        return float(value)
    if kind in (bool, int, str, NoneType):
        if type(value) is kind:
            return value
    elif is_dataclass(kind):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            return _dataclass(kind, value, where)
    elif get_origin(kind) in (Union, UnionType):
        return _any_of(get_args(kind), value, where)
    elif get_origin(kind) is Literal:
        if any(value == each and type(value) is type(each) for each in get_args(kind)):
            return value
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return _tuple(get_args(kind), value, where)
    elif get_origin(kind) in (Mapping, dict):
        if isinstance(value, Mapping):
            keys, values = get_args(kind)
            return {read_as(keys, k, where): read_as(values, v, f"{where}[{k!r}]") for k, v in value.items()}
    else:
        with jaxtyped("context"):  # where an interrupt left one open, names of axes would keep their sizes for good
            if isinstance(value, kind):
                return value
    raise ValueError(f"{where} is {brief(value)}, not {getattr(kind, '__name__', kind)}")


def _any_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    reasons = []
    for kind in kinds:
        try:
            return read_as(kind, value, where)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])


def _tuple(kinds: tuple[Any, ...], value: list | tuple, where: str) -> tuple:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} parts, not {len(kinds)}")
    return tuple(read_as(kind, part, f"{where}[{i}]") for i, (kind, part) in enumerate(zip(kinds, value, strict=True)))


_hints = cache(get_type_hints)


def _dataclass(kind: type, value: Mapping[str, Any], where: str) -> Any:
    hints, known = _hints(kind), [field for field in fields(kind) if field.init]
    needed = {field.name for field in known if field.default is MISSING and field.default_factory is MISSING}
    missing, unknown = needed - value.keys(), value.keys() - {field.name for field in known}
    if missing or unknown:
        raise ValueError(
            f"{where} has {f'no {sorted(missing)}' if missing else f'unknown fields {brief(sorted(unknown))}'}"
        )
    prefix = "" if where == "it" else f"{where}."
    return kind(**{name: read_as(hints[name], part, f"{prefix}{name}") for name, part in value.items()})
