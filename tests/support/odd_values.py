"""Values that nobody hands over on purpose: odd ones of the right type, by annotation, and ones of a wrong type."""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import jaxtyping
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tl_rome.sites import HookedModel

TEXTS = (
    *("", " ", "{}", "{} {}", "{", "{0}", "{x}", "Eiffel Tower", " Rome", "In {} is", "Paris" * 300, "e\u0301"),
    *("\ud83d", "a\x00b", "\x1b[2J", "\n", "\r\n", "\u202egnp", "<|endoftext|>", "<script>", "../..", "日本🗼"),
    *("%s", "None", "-1"),
)
SIZES = (-(2**70), -1, 0, 1, 2, 3, 7)
"""Of what takes time or memory with size, absurd sizes are not asked for."""
INTEGERS = (*SIZES, True, 127, 128, 1000, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30))
FLOATS = (-1.0, -0.0, 0.0, 1e-320, 1e-9, 0.5, 1.0, 2, 1e30, 1e308, math.inf, -math.inf, math.nan)
SIZED = {
    *("samples", "resamples", "tokens", "max_tokens", "new_tokens", "max_new_tokens", "max_steps", "points", "workers"),
    *("max_evaluations", "extra_evaluations", "prompts", "generation_length", "context_lengths", "counts", "width"),
    *("checkpoint_tokens", "n_layers", "retries", "window", "max_contexts", "shape", "units", "count", "batch_size"),
}
"""Names of parameters whose size costs."""


def _raises(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("of the caller's own function")


class Wrong:
    """An object of no use; a class is a function too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            _raises()

    def __repr__(self) -> str:
        return "Wrong()"


WRONG = (
    *(None, True, 3, -1, 2.5, math.nan, "text", "", b"bytes", [], ["x"], [None], (), {}, {"x": 1}, {"x"}, Wrong()),
    *(torch.zeros(2, 3), torch.tensor(1), torch.zeros(0), Path("no/file"), range(3), _raises, 1j, slice(2), Wrong),
)


def wrong() -> SearchStrategy[Any]:
    """Something of any type."""
    return st.sampled_from(WRONG)


def paths(folder: Path) -> tuple[Path | str, ...]:
    """Places of every kind, all of them in a folder."""
    (folder / "file").write_text("not what it should be")
    (folder / "empty").touch()
    (folder / "bytes.json").write_bytes(b'{"x": \xff')
    (folder / "list.json").write_text("[" * 3000)
    (folder / "folder" / "inner").mkdir(parents=True, exist_ok=True)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(folder / "nothing")
    there = ("file", "empty", "bytes.json", "list.json", "folder", "link")
    found = [folder / name for name in (*there, "file/below", "no/where", "\ud83d", "a\x00b", "x" * 300)]
    return (*found, *map(str, found), "", "~nosuchuser/x", "hf://", "hf://a")


class OddValues:
    """Strategies by annotation.

    Args:
        objects: Good objects, by class.
        folder: Where odd paths lead.
    """

    def __init__(self, objects: Mapping[type, Any], folder: Path) -> None:
        self.objects, self._paths = objects, paths(folder)

    def of(self, name: str, annotation: Any) -> SearchStrategy[Any]:
        """Odd values of a parameter.

        Raises:
            LookupError: If nothing is known of the annotation.
        """
        origin, args = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, (str, TypeVar)) or annotation in (Any, object):
            return wrong()
        if origin is Annotated:
            return self.of(name, args[0])
        if origin in (Union, types.UnionType):
            return st.one_of(*(self.of(name, each) for each in args))
        if origin is Literal:
            return st.sampled_from((*args, "", "released", args[0].upper()))
        if origin is Callable or annotation is Callable:
            return st.sampled_from(_functions(*args or ((), Any)))
        if origin in (dict, Mapping):
            return self._mapping(name, args)
        if origin is not None and issubclass(origin, Iterable):
            inner = self.of(name, args[0]) if args else wrong()
            return st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(_doubled) | inner | st.just(())
        return self._plain(name, annotation)

    def _mapping(self, name: str, args: tuple[Any, ...]) -> SearchStrategy[Any]:
        key, value = (self.of(name, each) for each in args or (str, Any))
        hashable = key.filter(lambda key: not isinstance(key, (list, dict, set)))
        return st.lists(st.tuples(hashable, value), max_size=3).map(_as_mapping)

    def _plain(self, name: str, annotation: Any) -> SearchStrategy[Any]:
        if annotation in (None, type(None)):
            return st.none()
        if annotation is bool:
            return st.booleans()
        if annotation is int:
            return st.sampled_from(SIZES if name in SIZED else INTEGERS)
        if annotation is float:
            return st.sampled_from(FLOATS)
        if annotation is str:
            names = [path for path in self._paths if isinstance(path, str)]
            return st.sampled_from(TEXTS) | st.text(max_size=8) | st.sampled_from(names)
        if annotation is Path:
            return st.sampled_from(self._paths)
        if annotation is torch.dtype:
            return st.sampled_from((torch.float64, torch.float16, torch.int8, torch.bool, torch.complex64))
        if annotation is torch.device:
            return st.sampled_from((torch.device("cpu"), torch.device("meta")))
        if annotation is torch.Generator:
            return st.builds(torch.Generator)
        return self._object(annotation)

    def _object(self, annotation: Any) -> SearchStrategy[Any]:
        if not isinstance(annotation, type):
            raise LookupError(f"no odd values are known for {annotation}; add some in {__file__}")
        if issubclass(annotation, (torch.Tensor, jaxtyping.AbstractArray)):
            return tensors()
        if "__call__" in vars(annotation) and getattr(annotation, "_is_protocol", False):
            return st.just(_raises)  # any callable fits, and what it raises is the caller's own
        known = [value for value in self.objects.values() if _is(value, annotation)]
        return st.sampled_from(known) if known else wrong()


def tensors() -> SearchStrategy[torch.Tensor]:
    """Of odd shapes, values and types."""
    flat = ((), (0,), (1,), (2,), (32,), (128,))
    shapes = (*flat, (2, 32), (0, 32), (2, 2, 32), (2, 1, 600), (128, 128), (128, 32), (32, 128))
    dtypes = (torch.float32, torch.float64, torch.float16, torch.long, torch.bool, torch.complex64)
    fills = (0.0, 1.0, -1.0, math.nan, math.inf, 1e30)
    return st.builds(_filled, st.sampled_from(shapes), st.sampled_from(dtypes), st.sampled_from(fills))


def _filled(shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> torch.Tensor:
    value = fill if dtype.is_floating_point or math.isfinite(fill) else 0.0
    return torch.full(shape, int(value) % 100 if dtype is torch.long else value, dtype=torch.float64).to(dtype)


def _is(value: object, cls: type) -> bool:
    """`isinstance`, also for protocols that do not allow it."""
    try:
        return isinstance(value, cls)
    except TypeError:
        return False


def _as_mapping(items: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    return dict(items)


def _doubled(items: list[Any]) -> tuple[Any, ...]:
    """Each item twice, as a tuple."""
    return (*items, *items)


def _functions(arguments: Any, returned: Any) -> tuple[Callable[..., Any], ...]:
    """Functions that raise, and ones whose result makes no sense where that can be told."""
    if AbstractContextManager in (returned, get_origin(returned)):
        return (_raises,)
    return (_raises, _nothing) if HookedModel in arguments else (_raises, _nothing, _same)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _same(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else None
