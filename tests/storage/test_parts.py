"""JSON values as types, and errors that name the file and the place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import InputError, ModelMismatchError, StorageError
from tl_rome.storage.parts import read_as, reading

pytestmark = pytest.mark.leg("3.9", "lowest")


@dataclass(frozen=True)
class Inner:
    x: float
    y: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    kind: Literal["a", "b"]
    tensor: Float[Tensor, "n n"]
    pair: tuple[str, bool] | None = None
    more: Mapping[str, Any] | None = None


WHOLE = {"inner": {"x": 1, "y": [2]}, "kind": "a", "tensor": torch.eye(2), "pair": ["p", True], "more": {"z": [None]}}


def test_objects_become_dataclasses_and_lists_tuples():
    found = read_as(Outer, WHOLE)
    assert found.inner == Inner(1.0, (2,))
    assert type(found.inner.x) is float
    assert (found.kind, found.pair, found.more) == ("a", ("p", True), {"z": [None]})
    assert read_as(Outer, {**WHOLE, "inner": Inner(1.0), "pair": None}).pair is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"y": []}}, r"inner has no \['x'\]"),
        ({"inner": {"x": 1, "z": 1}}, r"inner has unknown fields \['z'\]"),
        ({"inner": {"x": True}}, r"inner\.x is True, not float"),
        ({"inner": {"x": 10**400}}, r"inner\.x is 1000"),
        ({"inner": {"x": 1, "y": [1, "2"]}}, r"inner\.y\[1\] is '2', not int"),
        ({"inner": {"x": 1, "y": "12"}}, r"inner\.y is '12', not "),
        ({"inner": [1]}, r"inner is \[1\], not Inner"),
        ({"kind": "c"}, "kind is 'c'"),
        ({"pair": ["p"]}, "pair has 1 parts, not 2"),
        ({"more": [1]}, r"more is \[1\]"),
        ({"tensor": torch.ones(2, 3)}, "tensor is "),
        ({"tensor": torch.ones(2, 2).long()}, "tensor is "),
    ],
)
def test_what_is_of_another_type_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        read_as(Outer, WHOLE | change)


@pytest.mark.parametrize(
    "error", [KeyError("a"), AttributeError("items"), IndexError(), InputError("empty"), OverflowError()]
)
def test_the_file_is_blamed(error):
    with pytest.raises(StorageError, match=f"x.json lacks part of a trace or is damaged .{type(error).__name__}"):
        with reading("x.json", "a trace"):
            raise error


@pytest.mark.parametrize("error", [ModelMismatchError("other"), KeyboardInterrupt(), OSError("disk"), MemoryError()])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, reading("x.json", "a trace"):
        raise error
    assert caught.value is error
