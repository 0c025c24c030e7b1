"""Sums of keys and of their products over streamed text, for several layers in one pass.

A forward pass ends at the highest layer asked for. Products of one batch are taken in the model's dtype, float32 at
least, and added up in float64; of the symmetric product only blocks on and above the diagonal are computed. Texts are
gathered into windows of a few batches and sorted by length inside, so that little is spent on padding; between two
windows the sums are whole, can be looked at, and can be saved and taken up again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.errors import NumericsError, StorageError
from tl_rome.running.arithmetic import float64_device
from tl_rome.running.forward import device_of, read
from tl_rome.running.matrices import MlpMatrix, key_hook
from tl_rome.running.packed import check_matrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint, load, save
from tl_rome.storage.parts import read_as, reading
from tl_rome.tokens import pad

_KIND = "key_moments"
_WINDOW_BATCHES = 16
_BLOCKS = 8
"""Bands that the symmetric product is cut into; with 8 of them 9/16 of it is computed."""

Encoded = Int[Tensor, " pos"] | None
"""A text's tokens, None for one that is skipped."""


@dataclass(eq=False)
class KeyMoments:
    """Running sums; `stream_moments` adds to them in place."""

    second: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    """By layer: sum of k k^T, in blocks on and above the diagonal; what is below has no meaning. float64."""
    first: dict[int, Float[Tensor, " d_mlp"]]
    """By layer: sum of k; float64."""
    count: int
    """Tokens added up."""
    texts: int
    """Texts taken from the stream."""

    @classmethod
    def zeros(cls, model: HookedModel, layers: Iterable[int]) -> "KeyMoments":
        """Nothing added up yet; on the model's device where that has float64.

        Raises:
            InputError: If a layer is out of range.
        """
        device = float64_device(device_of(model))
        sizes = {layer: check_matrix(model, MlpMatrix(layer))[0] for layer in layers}
        second = {n: torch.zeros(size, size, dtype=torch.float64, device=device) for n, size in sizes.items()}
        return cls(second, {n: torch.zeros_like(matrix[0]) for n, matrix in second.items()}, 0, 0)

    def add(self, layer: int, keys: Float[Tensor, "tokens d_mlp"]) -> None:
        """Add a batch of one layer's keys; the caller counts its tokens."""
        keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
        second, width = self.second[layer], -(-keys.shape[1] // _BLOCKS)
        for start in range(0, keys.shape[1], width):
            band = slice(start, start + width)
            second[band, start:] += (keys[:, band].T @ keys[:, start:]).to(second.device)
        self.first[layer] += keys.sum(0).to(second.device)

    def moment(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """E[k k^T] so far; computed where the sums are, on the CPU.

        Raises:
            NumericsError: If a key was not finite.
        """
        upper = self.second[layer].triu().div_(self.count)
        if not bool(upper.isfinite().all()):
            raise NumericsError(f"keys of layer {layer} are not finite; look for NaN or inf weights")
        return upper.add_(upper.triu(1).T).cpu()

    def mean(self, layer: int) -> Float[Tensor, " d_mlp"]:
        """E[k] so far; on the CPU."""
        return self.first[layer].cpu() / self.count

    def save(self, path: str | Path, model: HookedModel, source: str) -> Path:
        """Write the sums as they are, to be taken up again later.

        Raises:
            StorageError: If the file cannot be written.
        """
        tensors = {f"{name}.{n}": part for name in ("second", "first") for n, part in getattr(self, name).items()}
        return save(path, _KIND, tensors, {**_identity(model, self.second, source), **self._counts()})

    @classmethod
    def load(cls, path: str | Path, model: HookedModel, layers: Iterable[int], source: str) -> "KeyMoments":
        """Read sums that `save` wrote.

        Raises:
            StorageError: If the file is damaged, or its sums are of another model, BOS policy, source or set of layers.
        """
        tensors, header = load(path, _KIND)
        wanted = _identity(model, layers, source)
        if {name: header.get(name) for name in wanted} != wanted:
            found = {name: header.get(name) for name in wanted}
            raise StorageError(f"{path} holds sums of {found}, not of {wanted}; name another file, or delete this one")
        moments = cls.zeros(model, layers)
        with reading(path, "the sums"):
            for name, sums in (("second", moments.second), ("first", moments.first)):
                for n, total in sums.items():
                    found = tensors[f"{name}.{n}"]
                    if (found.shape, found.dtype) != (total.shape, total.dtype):
                        raise ValueError(f"{name}.{n} is {tuple(found.shape)} in {found.dtype}")
                    total.copy_(found)
            moments.count, moments.texts = (read_as(int, header[name], name) for name in ("count", "texts"))
            if min(moments.count, moments.texts) < 0:
                raise ValueError(f"{moments.count} tokens of {moments.texts} texts")
        return moments

    def _counts(self) -> dict[str, int]:
        return {"count": self.count, "texts": self.texts}


def _identity(model: HookedModel, layers: Iterable[int], source: str) -> dict[str, object]:
    bos = bool(model.cfg.default_prepend_bos)
    return {"model": fingerprint(model), "layers": sorted(layers), "source": source, "prepend_bos": bos}


def stream_moments(
    model: HookedModel,
    moments: KeyMoments,
    texts: Iterable[Encoded],
    *,
    max_batch_tokens: int,
    stops: Sequence[int] = (),
    progress: bool = True,
) -> Iterator[KeyMoments]:
    """Add up keys, giving the sums after every window.

    Args:
        model: Left as found.
        moments: Where to begin; changed in place. As many texts as it has taken are skipped.
        texts: Token ids; read once, a window at a time.
        max_batch_tokens: Padded tokens per forward pass, which bounds memory.
        stops: Numbers of tokens, rising, at which a window ends; the last one ends the stream. A window ends with the
            text in which it reaches its stop.
        progress: Whether to show a progress bar over tokens.
    """
    layers = sorted(moments.second)
    names = {layer: key_hook(layer) for layer in layers}
    stream = islice(iter(texts), moments.texts, None)
    total = stops[-1] if stops else None
    title = f"keys of layer {', '.join(map(str, layers))}"
    with tqdm(total=total, initial=moments.count, desc=title, unit="token", disable=not progress) as bar:
        while not stops or moments.count < stops[-1]:
            budget = min([_WINDOW_BATCHES * max_batch_tokens, *(n - moments.count for n in stops if n > moments.count)])
            taken, window = _take(stream, budget)
            if not taken:
                return
            for batch in _batches(window, max_batch_tokens):
                _add(model, moments, names, batch)
                bar.update(sum(map(len, batch)))
            moments.texts += taken
            yield moments


def _take(stream: Iterator[Encoded], budget: int) -> tuple[int, list[Tensor]]:
    """Texts up to the one in which the budget of tokens is reached, and how many were looked at."""
    taken, tokens, window = 0, 0, []
    for text in stream:
        taken += 1
        if text is not None:
            window.append(text)
            tokens += len(text)
        if tokens >= budget:
            break
    return taken, window


def _batches(window: list[Tensor], max_batch_tokens: int) -> Iterator[list[Tensor]]:
    """Cut a window into batches of similar lengths, in which rows x longest row stays within the bound."""
    batch: list[Tensor] = []
    for tokens in sorted(window, key=len):
        if batch and len(tokens) * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(tokens)
    if batch:
        yield batch


@torch.no_grad()
def _add(model: HookedModel, moments: KeyMoments, names: dict[int, str], texts: list[Tensor]) -> None:
    batch = pad(texts)
    found = read(model, batch.tokens, names.values())
    real = (torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]).flatten().nonzero()[:, 0]
    for layer, name in names.items():
        moments.add(layer, found[name].flatten(0, 1)[real.to(found[name].device)])
    moments.count += int(batch.lengths.sum())
