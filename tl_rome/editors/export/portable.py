"""What an edit has to be to be written for other libraries."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor

from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel


@runtime_checkable
class Change(Protocol):
    """An update of one matrix, as far as it is written here."""

    @property
    def place(self) -> MlpMatrix:
        """The matrix that it changes."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """`left` [d_in, rank] and `right` [d_out, rank] if it is of low rank; something else if not."""
        ...


@runtime_checkable
class Portable(Protocol):
    """An edit with its receipt, or several, as `edits`."""

    @property
    def updates(self) -> Iterable[Change]:
        """Of any matrices, a matrix perhaps several times."""
        ...

    def applied(self, model: HookedModel) -> AbstractContextManager[HookedModel]:
        """The edited model."""
        ...
