"""Keys of the facts that are in a model already, as a value that the caller holds.

A batch that is solved with the memory of those before leaves what the model gives for their keys as it is, and all of
them together equal one solve over all facts (recursive least squares), for given keys and values. Going back is using
the memory from before: an edit that is undone takes nothing out of a later one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.edits.weights import weight_digest
from tl_rome.editors.sharing.shared import Shared
from tl_rome.errors import EditStateError, InputError, ModelMismatchError
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import check_matrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import check_fingerprint, digest, fingerprint, load, save
from tl_rome.storage.hub import local_path
from tl_rome.storage.parts import read_as, reading


@dataclass(frozen=True, eq=False, repr=False)
class KeyMemory(Shared):
    """The sum of K K^T over all batches so far, for each edited layer; it never changes, each batch gives a new one."""

    kind: ClassVar[str] = "key_memory"
    """Kind of its files."""
    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    """K K^T by layer; float64, on the CPU."""
    facts: int
    """Keys that have been added, per layer."""
    model: str
    """Fingerprint of the model."""
    digests: Mapping[int, str]
    """`weight_digest` of each layer's W_out with all batches so far; the next one is made on these weights."""

    def __repr__(self) -> str:
        return f"<key memory of {self.facts} facts, layers {', '.join(map(str, self.layers))}>"

    @classmethod
    def empty(cls, model: HookedModel, layers: Sequence[int]) -> "KeyMemory":
        """The memory of a model without edits, for the first batch.

        Raises:
            InputError: If a layer is out of range, or none is given.
            UnsupportedModelError: If a layer has no plain MLP.
        """
        if not layers:
            raise InputError("a key memory needs at least one layer")
        sizes = {layer: check_matrix(model, MlpMatrix(layer))[0] for layer in sorted(set(layers))}
        moments = {layer: torch.zeros(size, size, dtype=torch.float64) for layer, size in sizes.items()}
        return cls(moments, 0, fingerprint(model), {layer: weight_digest(model, MlpMatrix(layer)) for layer in moments})

    @property
    def layers(self) -> tuple[int, ...]:
        """Lowest first."""
        return tuple(self.moments)

    def earlier(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"] | None:
        """K K^T of a layer, or None where there is no fact yet."""
        return self.moments[layer] if self.facts else None

    def grown(self, keys: Mapping[int, Float[Tensor, "d_mlp n"]], digests: Mapping[int, str]) -> "KeyMemory":
        """The memory after one more batch.

        Args:
            keys: Of each layer, columns are keys.
            digests: Of W_out with the batch.

        Raises:
            InputError: If they are not those of the memory's layers.
        """
        if not keys.keys() == digests.keys() == self.moments.keys():
            raise InputError(
                f"keys of layers {sorted(keys)} and digests of {sorted(digests)}; the memory has {sorted(self.moments)}"
            )
        moments = {layer: moment + (keys[layer] @ keys[layer].T).cpu() for layer, moment in self.moments.items()}
        count = next(iter(keys.values())).shape[1]
        return KeyMemory(moments, self.facts + count, self.model, dict(digests))

    def check(self, model: HookedModel, layers: Sequence[int]) -> None:
        """Refuse the memory of another model, of other layers, or of other edits than the model has.

        Raises:
            ModelMismatchError: If it is of another model.
            InputError: If it is of other layers.
            EditStateError: If the model's W_out are not those that the last batch left.
        """
        check_fingerprint(model, self.model, "the key memory")
        if self.layers != tuple(sorted(layers)):
            raise InputError(f"the key memory is of layers {self.layers}, the editor edits {tuple(layers)}")
        for layer, moment in self.moments.items():
            if moment.shape[0] != check_matrix(model, MlpMatrix(layer))[0]:
                raise ModelMismatchError(f"the key memory has {moment.shape[0]} dimensions in layer {layer}")
            if weight_digest(model, MlpMatrix(layer)) != self.digests[layer]:
                raise EditStateError(
                    f"W_out of layer {layer} is not as the {self.facts} facts of this key memory left it; apply the "
                    "edits that it came with, in order and no others, or use the memory that belongs to these weights"
                )

    @property
    def file_name(self) -> str:
        """What tells this memory from all others."""
        return f"{self.model}-{self.facts}-facts-{digest([*self.digests.values()])}.memory.safetensors"

    def save(self, path: str | Path) -> Path:
        """Write the upper triangles, in float64.

        Raises:
            StorageError: If the file cannot be written.
        """
        tensors = {str(layer): moment[_triangle(len(moment))] for layer, moment in self.moments.items()}
        sizes = {str(layer): len(moment) for layer, moment in self.moments.items()}
        digests = {str(layer): digest for layer, digest in self.digests.items()}
        header = {"facts": self.facts, "model": self.model, "digests": digests, "sizes": sizes}
        return save(path, self.kind, tensors, header)

    @classmethod
    def load(cls, path: str | Path, model: HookedModel | None = None) -> "KeyMemory":
        """Read a memory that `save` wrote.

        Args:
            path: The file, or `hf://owner/name/file`.
            model: If given, the memory is checked to belong to it at once, otherwise when it is used.

        Raises:
            StorageError: If the file is damaged, holds something else, or cannot be fetched.
            ModelMismatchError: If it is of another model.
        """
        tensors, header = load(local_path(path), cls.kind)
        with reading(path, "a key memory"):
            sizes = read_as(dict[str, int], header["sizes"], "sizes")
            digests = read_as(dict[str, str], header["digests"], "digests")
            moments = {int(name): _whole(tensors[name].double(), size) for name, size in sizes.items()}
            facts, fingerprint_ = read_as(int, header["facts"], "facts"), read_as(str, header["model"], "model")
            found = cls(moments, facts, fingerprint_, {int(name): digests[name] for name in sizes})
        if model is not None:
            check_fingerprint(model, found.model, str(path))
        return found


def _triangle(size: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(size, size)
    return rows, columns


def _whole(triangle: Float[Tensor, " entries"], size: int) -> Float[Tensor, "size size"]:
    """The symmetric matrix."""
    if triangle.numel() != size * (size + 1) // 2:
        raise ValueError(f"{triangle.numel()} figures, not those of a matrix of {size} rows")
    rows, columns = _triangle(size)
    moment = torch.zeros(size, size, dtype=torch.float64)
    moment[rows, columns] = triangle
    moment[columns, rows] = triangle
    return moment
