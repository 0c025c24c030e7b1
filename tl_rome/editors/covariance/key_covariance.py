"""C = E[k k^T], the second moment of an MLP's keys over text: what an edit must not disturb.

See section 3.1 and appendix E.5. Not centred, although it is commonly called a covariance; taken over every token of
every text, as in the paper. C^-1 k is solved by Cholesky in float64, on the keys' device where that has it, else on the
CPU; an inverse is never formed.
"""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.sharing.shared import Shared
from tl_rome.errors import InputError, NumericsError, StorageError
from tl_rome.running.arithmetic import float64_device, in_float64
from tl_rome.sites import HookedModel
from tl_rome.storage.files import check_fingerprint, has_fingerprint, load, save
from tl_rome.storage.parts import read_as, reading

Eigen = tuple[Float[Tensor, " d_mlp"], Float[Tensor, "d_mlp d_mlp"]]
"""Eigenvalues and, as columns, eigenvectors."""

_HEADER = ("layer", "count", "source", "prepend_bos", "model")


@dataclass(frozen=True, eq=False, repr=False)
class KeyCovariance(Shared):
    """Second moment of the keys of one layer of one model."""

    kind: ClassVar[str] = "key_covariance"
    """Kind of its files."""
    second_moment: Float[Tensor, "d_mlp d_mlp"]
    """E[k k^T], symmetric; float64, on the CPU."""
    layer: int
    """Layer whose W_out the keys enter."""
    count: int
    """Tokens averaged over."""
    source: str
    """What text they came from."""
    prepend_bos: bool
    """Whether each text began with a BOS token, which was counted."""
    model: str
    """Fingerprint of the model."""
    mean: Float[Tensor, " d_mlp"] | None = None
    """E[k], where it is known."""
    dtype: str = "float32"
    """Type of the model's weights."""

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.second_moment.shape))
        return f"<key covariance of layer {self.layer}, {size}, {self.count} tokens, {self.source}>"

    @classmethod
    def shipped(cls, model: HookedModel) -> "KeyCovariance | None":
        """The statistics that come with the package for its default model and layer, or None for any other model."""
        for file in resources.files("tl_rome.data").iterdir():
            if file.name.endswith(".covariance.safetensors"):
                with resources.as_file(file) as path:
                    found = cls.load(path)
                if has_fingerprint(model, found.model) and found.prepend_bos == bool(model.cfg.default_prepend_bos):
                    return found
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # factors belong to this machine

    @cached_property
    def _factors(self) -> dict[torch.device, Float[Tensor, "d_mlp d_mlp"]]:
        """What `factor` has made."""
        return {}

    def factor(self, device: torch.device) -> Float[Tensor, "d_mlp d_mlp"]:
        """L of C = L L^T, lower triangular, in float64; made once and kept for every edit of the layer.

        Args:
            device: Where it is wanted; it is made and kept there if the device has float64, else on the CPU.

        Raises:
            NumericsError: If C is singular.
        """
        device = float64_device(device)
        if device not in self._factors:
            self._factors[device] = self._factored(self.second_moment.to(device))
        return self._factors[device]

    def _factored(self, moment: Float[Tensor, "d_mlp d_mlp"]) -> Float[Tensor, "d_mlp d_mlp"]:
        factor, info = torch.linalg.cholesky_ex(moment)
        if int(info) != 0:
            size, dead = len(factor), int((self.second_moment.diagonal() == 0).sum())
            remedy = f"estimate it from at least {4 * size} tokens of varied text"
            if dead:
                remedy = f"{dead} units were never active in that text; edit another layer, or {remedy}"
            raise NumericsError(
                f"the key covariance of layer {self.layer} is singular after {self.count} tokens for {size} "
                f"dimensions; {remedy}"
            )
        return factor

    @cached_property
    def _eigen(self) -> dict[torch.device, Eigen]:
        """What `eigen` has made."""
        return {}

    def eigen(self, device: torch.device) -> Eigen:
        """Eigenvalues, ascending, and eigenvectors as columns, in float64; made once and kept, as `factor` is.

        Args:
            device: Where they are wanted; they are made and kept there if the device has float64, else on the CPU.
        """
        device = float64_device(device)
        if device not in self._eigen:
            self._eigen[device] = torch.linalg.eigh(self.second_moment.to(device))
        return self._eigen[device]

    def solve(self, keys: Float[Tensor, "*keys d_mlp"]) -> Float[Tensor, "*keys d_mlp"]:
        """C^-1 k of each key, in float64, on the keys' device where that has it, else on the CPU.

        Raises:
            InputError: If a key is not as wide as C.
            NumericsError: If C is singular.
        """
        if keys.shape[-1] != len(self.second_moment):
            raise InputError(f"the key has {keys.shape[-1]} numbers, the covariance is of {len(self.second_moment)}")
        columns = in_float64(keys).reshape(-1, keys.shape[-1]).T
        return torch.cholesky_solve(columns, self.factor(columns.device)).T.reshape(keys.shape)

    def check(self, model: HookedModel, layer: int) -> None:
        """Refuse statistics of another layer, model or BOS policy.

        Raises:
            InputError: If they are of another layer, or the model's prompts begin otherwise.
            ModelMismatchError: If they are of another model.
        """
        if self.layer != layer:
            raise InputError(f"the covariance is of layer {self.layer}, the edit is at layer {layer}")
        check_fingerprint(model, self.model, "the key covariance")
        if self.prepend_bos != bool(model.cfg.default_prepend_bos):
            raise InputError(
                f"the covariance was estimated with prepend_bos={self.prepend_bos}, this model has "
                f"{not self.prepend_bos}; estimate it anew, or load the model with the same policy"
            )

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify these statistics, as stored in float32."""
        return hashlib.sha256(self.second_moment.float().numpy().tobytes()).hexdigest()[:16]

    @property
    def file_name(self) -> str:
        """What tells these statistics from all others."""
        return f"{self.model}-layer{self.layer}-{self.digest}.covariance.safetensors"

    def save(self, path: str | Path) -> Path:
        """Write the upper triangle in float32, half the size of the matrix.

        Args:
            path: The file; or an existing folder, in which the file is named by its content.

        Raises:
            StorageError: If the file cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            path /= self.file_name
        rows, columns = torch.triu_indices(*self.second_moment.shape)
        tensors = {"upper_triangle": self.second_moment[rows, columns].float()}
        if self.mean is not None:
            tensors["mean"] = self.mean.float()
        header = {name: getattr(self, name) for name in (*_HEADER, "dtype", "digest")}
        return save(path, self.kind, tensors, {**header, "d_mlp": len(self.second_moment)})

    @classmethod
    def load(cls, path: str | Path) -> "KeyCovariance":
        """Read statistics that `save` wrote.

        Args:
            path: The file, or `hf://owner/name/file` for one that is shared on the model hub.

        Raises:
            StorageError: If the file is damaged, holds something else, or cannot be fetched.
        """
        from tl_rome.storage.hub import local_path

        tensors, header = load(local_path(path), cls.kind)
        with reading(path, "the key statistics"):
            size = read_as(int, header["d_mlp"], "d_mlp")
            if not tensors["upper_triangle"].numel() == size * (size + 1) // 2 > 0:
                raise ValueError(f"{tensors['upper_triangle'].numel()} figures, not those of a matrix of {size} rows")
            rows, columns = torch.triu_indices(size, size)
            moment = torch.zeros(size, size, dtype=torch.float64)
            moment[rows, columns] = tensors["upper_triangle"].double()
            moment[columns, rows] = moment[rows, columns]
            mean = tensors["mean"].double() if "mean" in tensors else None
            if mean is not None and mean.shape != (size,):
                raise ValueError(f"a mean of {tuple(mean.shape)} keys, not {size}")
            named = {name: header[name] for name in _HEADER}
            named |= {"mean": mean, "dtype": header.get("dtype", "float32")}
            found = read_as(cls, {"second_moment": moment, **named})
        if header.get("digest", found.digest) != found.digest:
            raise StorageError(f"{path} does not hold what its digest {header['digest']} says; make it again")
        return found
