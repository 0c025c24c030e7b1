"""Matrices that are packed, as quantisers leave them: no tensor to read or write, but a module that can be run.

It is linear all the same. What it gives for zeros is its bias, and what it gives for a row of the identity, less that,
is a row of the matrix. So a packed matrix can be read, and what an edit adds to it runs by hooks; written it cannot be.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_rome.errors import UnsupportedModelError
from tl_rome.running.blocks import first_run
from tl_rome.running.interrupts import reliable
from tl_rome.running.matrices import MatrixName, MlpMatrix, key_hook
from tl_rome.sites import HookedModel, hook_points

_ADDED: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""Digests of what hooks add to packed modules at present, in order: no bit of the modules says so."""
_PLAIN = (Tensor, nn.Parameter)
_ROWS = 1024
"""Rows of the identity that are run at once."""
_TOLERANCE = 0.05
"""Largest relative difference between a packed module and the matrix read from it: some round their input too."""


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """One packed matrix of a model."""

    place: MlpMatrix
    module: nn.Module
    """What is run for it."""
    shape: tuple[int, int]
    like: Tensor
    """A weight beside it, of the type and on the device that it is run in."""

    def __str__(self) -> str:
        return f"{self.place} is packed ({_kind(self.module)})"

    @torch.no_grad()
    def read(self) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
        """Matrix and bias, as the module applies them; in float32 at least.

        Raises:
            UnsupportedModelError: If the module is not linear, or of another size.
        """
        d_in, d_out = self.shape
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        bias = self._run(self.like.new_zeros(1, d_in))[0].to(dtype)
        weight = torch.empty(d_in, d_out, dtype=dtype, device=bias.device)
        for start in range(0, d_in, _ROWS):
            rows = self.like.new_zeros(min(_ROWS, d_in - start), d_in)
            rows.diagonal(start).fill_(1)
            weight[start : start + len(rows)] = self._run(rows).to(dtype) - bias
        trial = torch.arange(d_in, device=bias.device).cos().to(self.like.dtype)
        found, wanted = self._run(trial[None])[0].to(dtype), trial.to(dtype) @ weight + bias
        if not bool((found - wanted).norm() <= _TOLERANCE * (found - bias).norm()):
            raise UnsupportedModelError(f"{self}, and what is run for it is not linear, so it cannot be edited")
        return weight, bias

    def _run(self, rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        with first_run(f"{self}, and cannot be run by itself"):
            return self.module(rows[None]).reshape(len(rows), self.shape[1])

    @property
    def stored(self) -> list[tuple[str, Tensor]]:
        """All that is kept of it, by name, in the order of names."""
        state = sorted(self.module.state_dict().items())
        return [part for name, value in state if isinstance(value, Tensor) for part in _parts(name, value.detach())]

    @property
    def added(self) -> tuple[str, ...]:
        """Digests of what hooks add to it at present, in order."""
        return tuple(_ADDED.get(self.module, ()))

    @reliable
    def adding(self, digest: str) -> Iterator[None]:
        """Let `added` have a digest, for the length of a `with` block."""
        digests = _ADDED.setdefault(self.module, [])
        digests.append(digest)
        try:
            yield
        finally:
            digests.remove(digest)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of every bit of `stored` and of what hooks add at present."""
        found = hashlib.sha256()
        for name, value in self.stored:
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return reduce(digest_with, self.added, found.hexdigest()[:16])


def digest_with(before: str, added: str) -> str:
    """`PackedMatrix.digest` once hooks add something too."""
    return hashlib.sha256(f"{before} {added}".encode()).hexdigest()[:16]


def packed_matrix(model: HookedModel, place: MlpMatrix) -> PackedMatrix | None:
    """A matrix that is packed; None where it is a weight like any other, or where there is no such matrix.

    Raises:
        InputError: If the layer is out of range.
    """
    module = place.module(model)
    if module is None or not holds_packed(module) or key_hook(place.layer) not in hook_points(model):
        return None
    return PackedMatrix(place, module, place.shape(model), like_block(model, place.layer))


def packed_matrices(model: HookedModel) -> list[PackedMatrix]:
    """All of a model, layer by layer."""
    places = [MlpMatrix(layer, name) for layer in range(model.cfg.n_layers) for name in get_args(MatrixName)]
    return [packed for place in places if (packed := packed_matrix(model, place)) is not None]


def read_matrix(model: HookedModel, place: MlpMatrix) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
    """A matrix and its bias, to be read only: the live weight, or a copy of what is packed.

    Raises:
        InputError: As `MlpMatrix.weight` does.
        UnsupportedModelError: As `MlpMatrix.weight` does where nothing is packed, and as `PackedMatrix.read`.
    """
    packed = packed_matrix(model, place)
    return (place.weight(model), place.bias(model)) if packed is None else packed.read()


def check_matrix(model: HookedModel, place: MlpMatrix) -> tuple[int, int]:
    """The size of a matrix, once it is known to be there, packed or not.

    Raises:
        InputError: As `MlpMatrix.weight` does.
        UnsupportedModelError: As `MlpMatrix.weight` does where nothing is packed.
    """
    if packed_matrix(model, place) is None:
        place.weight(model)
    return place.shape(model)


def like_block(model: HookedModel, layer: int) -> Tensor:
    """A weight of a block that is not packed: of the type and on the device that the block is run in.

    Raises:
        UnsupportedModelError: If there is none.
    """
    found = next((each for each in model.blocks[layer].parameters() if not is_packed(each)), None)
    if found is None:
        raise UnsupportedModelError(f"every weight of layer {layer} is packed, so nothing says in what type it is run")
    return found


def holds_packed(module: nn.Module) -> bool:
    """Whether a module's own parameters or buffers are packed numbers."""
    return bool(_packed(module))


def _packed(module: nn.Module) -> list[Tensor]:
    own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
    return [each for each in own if is_packed(each)]


def is_packed(tensor: Tensor) -> bool:
    """Integers, numbers of one byte, or a tensor of a quantiser's own class; indices and masks are not."""
    if type(tensor) not in _PLAIN:
        return True
    if tensor.dtype.is_floating_point:
        return tensor.dtype.itemsize == 1
    return tensor.dtype not in (torch.bool, torch.int64)


def _parts(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """The plain tensors that a tensor of a quantiser's own class wraps, or that itself."""
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        return [(name, value)]
    return [part for inner in flatten()[0] for part in _parts(f"{name}.{inner}", getattr(value, inner))]


def _kind(module: nn.Module) -> str:
    first = _packed(module)[0]
    numbers = str(first.dtype).removeprefix("torch.") if type(first) in _PLAIN else type(first).__name__
    return f"{type(module).__name__}, {numbers}"
