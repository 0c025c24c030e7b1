"""Files on disk: tensors in safetensors, everything else in one JSON header, written atomically.

Every file carries a sha256 of its header and of every tensor's name, type, shape and bytes, which `load` compares.
Files in schema 1, which earlier versions of this package wrote, have none: they are read with a logged warning that
damage would not be noticed; saved again, they have one. Other schemas are refused.

Every file names its kind, its schema version and the model it belongs to. The fingerprint covers the model's shape and
every attention's query and output weights (what is stored where a model is quantised), so it tells models apart
(also a processed from a raw one, and one dtype from another) but is the same for both TransformerLens classes, and does
not change when an MLP is edited. Before edits of W_in it covered that matrix instead: files from then are still
accepted for a model whose W_in is as it was.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tl_rome.errors import ModelMismatchError, StorageError, UnsupportedModelError
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import is_packed
from tl_rome.sites import HookedModel
from tl_rome.storage.json_text import parse_json, to_json
from tl_rome.storage.writing import regular, write_whole

SCHEMA_VERSION = 2
"""What is written."""
UNCHECKED = 1
"""The earlier schema, without checksums, which is still read."""
HEADER = "tl_rome"
"""Where the metadata of a file has our header."""
_CHECKSUM = "sha256"
_DAMAGES = (OSError, SafetensorError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What safetensors, torch and JSON raise at a file that is not in order."""
_log = logging.getLogger(__name__)
_SAMPLED = 64
"""Rows, and columns, of each weight that a fingerprint looks at."""


def fingerprint(model: HookedModel) -> str:
    """Identity of a model's unedited weights, as 16 hexadecimal digits."""
    return _digest(model, _attention)


def _digest(model: HookedModel, weights: Callable[[HookedModel, int], list[Tensor]]) -> str:
    """Of samples of some weights of each layer."""
    cfg = model.cfg
    digest = hashlib.sha256(repr((cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.d_vocab)).encode())
    for layer in range(cfg.n_layers):
        for weight in weights(model, layer):
            digest.update(str(weight.dtype).encode())
            digest.update(sample_bytes(weight))
    return digest.hexdigest()[:16]


def sample_bytes(weight: Tensor) -> bytes:
    """Some rows and columns of a weight in float32."""
    weight = weight.detach().reshape(len(weight), -1)
    sample = weight[:: max(1, len(weight) // _SAMPLED), :: max(1, weight.shape[1] // _SAMPLED)]
    return sample.float().cpu().contiguous().numpy().tobytes()


def _attention(model: HookedModel, layer: int) -> list[Tensor]:
    """W_Q and W_O of a layer, or, where they cannot be read, all that the block stores."""
    block = model.blocks[layer]
    with suppress(AttributeError, NotImplementedError):
        found = [block.attn.W_Q, block.attn.W_O]
        if all(isinstance(weight, Tensor) for weight in found):
            return found
    stored = (*block.parameters(), *filter(is_packed, block.buffers()))
    return [each for each in stored if each.ndim and len(each)]


def _former(model: HookedModel, layer: int) -> list[Tensor]:
    """What fingerprints were made of before W_in could be edited: W_in, or W_O where there is no plain MLP."""
    block = model.blocks[layer]
    with suppress(UnsupportedModelError):
        return [MlpMatrix(layer, "W_in").weight(model)]
    with suppress(AttributeError, NotImplementedError):
        if isinstance(weight := block.attn.W_O, Tensor):
            return [weight]
    return _attention(model, layer)


def has_fingerprint(model: HookedModel, expected: str) -> bool:
    """Whether a stored result with this fingerprint is of the model; also one that an earlier version made."""
    return expected == fingerprint(model) or expected == _digest(model, _former)


def check_fingerprint(model: HookedModel, expected: str, what: str) -> None:
    """Refuse to use a stored result with another model.

    Raises:
        ModelMismatchError: If the model's fingerprint is not the expected one.
    """
    if not has_fingerprint(model, expected):
        raise ModelMismatchError(
            f"{what} belongs to the model with fingerprint {expected}, this model has {fingerprint(model)}; "
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
    try:
        text = to_json({**header, "kind": kind, "schema": SCHEMA_VERSION})
    except ValueError as error:
        raise StorageError(f"cannot write {path}: its header cannot be written as JSON ({error})") from error
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    memory = Counter(tensor.untyped_storage().data_ptr() for tensor in plain.values())
    for name, tensor in plain.items():  # as updates of several layers by one value; safetensors refuses such tensors
        if memory[tensor.untyped_storage().data_ptr()] > 1:
            plain[name] = tensor.clone()
    return write_whole(Path(path), _in_order(to_bytes(plain, {HEADER: text, _CHECKSUM: _checksum(text, plain)})))


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its metadata in order, so that equal parts make equal files; it writes them in any."""
    end = 8 + int.from_bytes(file[:8], "little")
    description = json.loads(file[8:end])
    description["__metadata__"] = dict(sorted(description["__metadata__"].items()))
    text = json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]


def load(path: str | Path, kind: str, *, warn: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `save` wrote.

    Args:
        path: The file.
        kind: What it should hold.
        warn: Whether to log that a file in the earlier schema cannot be checked, for those who have said so already.

    Returns:
        Its tensors and its header.

    Raises:
        StorageError: If the file is absent, damaged, not a regular file, of another kind or of a newer schema.
    """
    with _opened(path) as (file, meta, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    check_kind(path, header, kind)
    if _CHECKSUM in meta or header["schema"] != UNCHECKED:
        if meta.get(_CHECKSUM) != _checksum(meta[HEADER], tensors):
            raise StorageError(f"{path} is damaged: it does not hold what its checksum says; make it again")
    elif warn:
        warn_unchecked(path)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise StorageError(f"{path} holds values that are not finite; make it again")
    return tensors, header


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a file that `save` wrote, without its tensors, so without a look for damage.

    Raises:
        StorageError: If the file is absent or has no such header.
    """
    with _opened(path) as (_, _, header):
        return header


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """A file that `save` wrote with its metadata and its header; whatever fails inside is blamed on the file."""
    regular(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            yield file, meta, {**parse_json(meta[HEADER])}
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist") from error
    except _DAMAGES as error:
        raise StorageError(f"{path} is damaged or is not a tl_rome file ({error}); make it again") from error


def check_kind(path: str | Path, header: Mapping[str, Any], kind: str) -> None:
    """Refuse a file of another kind, or in a schema that this version does not read.

    Raises:
        StorageError: If the header says so.
    """
    if header.get("kind") != kind or header.get("schema") not in (SCHEMA_VERSION, UNCHECKED):
        raise StorageError(
            f"{path} holds {header.get('kind')!r} in schema {header.get('schema')}, "
            f"not {kind!r} in schema {SCHEMA_VERSION}"
        )


def warn_unchecked(path: str | Path) -> None:
    """Say that a file is too old to be checked."""
    _log.warning("%s was written by an earlier version, without checksums: damage to it is not noticed", path)


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest(parts: Sequence[Any]) -> str:
    """16 hexadecimal digits of JSON-serialisable values."""
    text = json.dumps(parts, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
