"""Files on disk: tensors in safetensors, everything else in one JSON header, written atomically.

Every file names its kind, its schema version and the model it belongs to. The fingerprint covers the model's shape and
every MLP's input weights (attention output weights where there is no plain MLP, the stored parameters where a model is
quantised), so it tells models apart (also a processed from a raw one, and one dtype from another) but is the same for
both TransformerLens classes, and does not change when W_out is edited.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tl_rome.errors import ModelMismatchError, StorageError, UnsupportedModelError
from tl_rome.sites import HookedModel, w_in

SCHEMA_VERSION = 1
_HEADER = "tl_rome"
_SAMPLED = 64
"""Rows, and columns, of each weight that a fingerprint looks at."""


def fingerprint(model: HookedModel) -> str:
    """Identity of a model's unedited weights, as 16 hexadecimal digits."""
    cfg = model.cfg
    digest = hashlib.sha256(repr((cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.d_vocab)).encode())
    for layer in range(cfg.n_layers):
        for weight in _kept_weights(model, layer):
            weight = weight.detach().reshape(len(weight), -1)
            sample = weight[:: max(1, len(weight) // _SAMPLED), :: max(1, weight.shape[1] // _SAMPLED)]
            digest.update(str(weight.dtype).encode())
            digest.update(sample.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept_weights(model: HookedModel, layer: int) -> list[Tensor]:
    """A layer's weights that edits leave alone.

    They are W_in; W_O where there is no plain MLP; and where TransformerLens can read neither, as in a quantised model
    (which cannot be edited), all parameters of the block as they are stored.
    """
    with suppress(UnsupportedModelError):
        return [w_in(model, layer)]
    block = model.blocks[layer]
    with suppress(AttributeError, NotImplementedError):
        if isinstance(weight := block.attn.W_O, Tensor):
            return [weight]
    return [parameter for parameter in block.parameters() if parameter.ndim and len(parameter)]


def check_fingerprint(model: HookedModel, expected: str, what: str) -> None:
    """Refuse to use a stored result with another model.

    Raises:
        ModelMismatchError: If the model's fingerprint is not the expected one.
    """
    found = fingerprint(model)
    if found != expected:
        raise ModelMismatchError(
            f"{what} belongs to the model with fingerprint {expected}, this model has {found}; "
            "load the same checkpoint in the same dtype, without weight processing"
        )


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write one file, which appears whole or not at all.

    Args:
        path: Where to write; parent folders are made.
        kind: What the file holds, checked by `load`.
        tensors: Saved on the CPU in their own dtype.
        header: JSON-serialisable.

    Raises:
        StorageError: If the file cannot be written.
    """
    meta = {_HEADER: json.dumps({"kind": kind, "schema": SCHEMA_VERSION, **header}, ensure_ascii=False)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_whole(Path(path), to_bytes(plain, meta))


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file, which appears whole or not at all; parent folders are made.

    Raises:
        StorageError: If it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `save` wrote.

    Returns:
        Its tensors and its header.

    Raises:
        StorageError: If the file is absent, damaged, of another kind or of a newer schema.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = {**json.loads((file.metadata() or {})[_HEADER])}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist") from error
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise StorageError(f"{path} is damaged or is not a tl_rome file ({error}); make it again") from error
    if header.get("kind") != kind or header.get("schema") != SCHEMA_VERSION:
        raise StorageError(
            f"{path} holds {header.get('kind')!r} in schema {header.get('schema')}, "
            f"not {kind!r} in schema {SCHEMA_VERSION}"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise StorageError(f"{path} holds values that are not finite; make it again")
    return tensors, header


def digest(parts: Sequence[Any]) -> str:
    """16 hexadecimal digits of JSON-serialisable values."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]
