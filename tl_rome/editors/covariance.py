"""C = E[k k^T], the second moment of an MLP's keys over text: what an edit must not disturb (section 4.2).

Not centred, although everyone calls it a covariance; taken over every token of every text, as in the paper. Products of
one batch are in float32, sums over batches in float64; C^-1 k is solved by Cholesky in float64 and no inverse is ever
formed.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.editors.contexts import start_token
from tl_rome.errors import InputError, NumericsError
from tl_rome.forward import read
from tl_rome.generation import sample_tokens
from tl_rome.sites import HookedModel, key_hook, w_out
from tl_rome.storage import check_fingerprint, fingerprint, load, save
from tl_rome.tokens import encode, pad

_log = logging.getLogger(__name__)
_KIND = "key_covariance"
_SAMPLED_LENGTH = 128


@dataclass(frozen=True, eq=False)
class KeyCovariance:
    """Second moment of the keys of one layer of one model."""

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

    @classmethod
    def estimate(
        cls,
        model: HookedModel,
        layer: int,
        texts: Iterable[str],
        *,
        source: str,
        max_tokens: int | None = None,
        batch_tokens: int = 4096,
        progress: bool = True,
    ) -> "KeyCovariance":
        """Stream over texts, each cut at the model's context, running the model up to the layer only.

        Args:
            model: Left as found.
            layer: Layer whose keys are wanted.
            texts: Any iterable; read once, never held as a whole. Blank texts are passed over.
            source: Name of the texts, kept with the result.
            max_tokens: Stop after the batch in which this many tokens are reached.
            batch_tokens: Padded tokens per batch, which bounds memory.
            progress: Whether to show a progress bar over tokens.

        Raises:
            InputError: If the layer is out of range or there is no text.
            NumericsError: If a key is not finite.
        """
        encoded = (encode(model, text, truncate=True) for text in texts if text.strip())
        return cls._stream(model, layer, encoded, source, max_tokens, batch_tokens, progress)

    @classmethod
    def from_own_samples(
        cls,
        model: HookedModel,
        layer: int,
        *,
        generator: torch.Generator,
        tokens: int = 32_768,
        batch: int = 64,
        progress: bool = True,
    ) -> "KeyCovariance":
        """Estimate from text that the model samples from its start token: the fallback where no corpus is at hand.

        Args:
            model: Left as found.
            layer: Layer whose keys are wanted.
            generator: Source of the draws.
            tokens: How many tokens to sample, at least; must well exceed d_mlp.
            batch: Texts sampled at once.
            progress: Whether to show progress.

        Raises:
            NumericsError: If a key is not finite.
        """
        _log.warning(
            "estimating the key covariance of layer %d from %d tokens of text that the model samples itself; "
            "a corpus is better: KeyCovariance.estimate(model, layer, texts, source=...)",
            layer,
            tokens,
        )
        length = min(_SAMPLED_LENGTH, model.cfg.n_ctx - 1)

        def texts() -> Iterator[Int[Tensor, " pos"]]:
            for _ in range(-(-tokens // (batch * length))):
                start = torch.full((batch, 1), start_token(model))
                yield from sample_tokens(model, start, length, generator=generator, top_k=None)[:, 1:]

        return cls._stream(model, layer, texts(), "own samples", tokens, batch * length, progress)

    @classmethod
    def _stream(
        cls,
        model: HookedModel,
        layer: int,
        encoded: Iterable[Int[Tensor, " pos"]],
        source: str,
        max_tokens: int | None,
        batch_tokens: int,
        progress: bool,
    ) -> "KeyCovariance":
        d_mlp = w_out(model, layer).shape[0]
        total, count = torch.zeros(d_mlp, d_mlp, dtype=torch.float64), 0
        with tqdm(total=max_tokens, desc=f"covariance of layer {layer}", unit="token", disable=not progress) as bar:
            for batch in _batches(encoded, batch_tokens):
                keys = _keys(model, layer, batch)
                total += (keys.T @ keys).double().cpu()
                count += len(keys)
                bar.update(len(keys))
                if max_tokens is not None and count >= max_tokens:
                    break
        if count == 0:
            raise InputError(f"no text to estimate a covariance from ({source})")
        if not bool(total.isfinite().all()):
            raise NumericsError(f"keys of layer {layer} are not finite; look for NaN or inf weights")
        moment = (total + total.T) / (2 * count)
        return cls(moment, layer, count, source, bool(model.cfg.default_prepend_bos), fingerprint(model))

    @classmethod
    def shipped(cls, model: HookedModel) -> "KeyCovariance | None":
        """The statistics that come with the package for its default model and layer, or None for any other model."""
        for file in resources.files("tl_rome.data").iterdir():
            if file.name.endswith(".covariance.safetensors"):
                with resources.as_file(file) as path:
                    found = cls.load(path)
                if found.model == fingerprint(model) and found.prepend_bos == bool(model.cfg.default_prepend_bos):
                    return found
        return None

    @cached_property
    def _cholesky(self) -> Float[Tensor, "d_mlp d_mlp"]:
        factor, info = torch.linalg.cholesky_ex(self.second_moment)
        if int(info) != 0:
            raise NumericsError(
                f"the key covariance of layer {self.layer} is singular after {self.count} tokens for {len(factor)} "
                f"dimensions; estimate it from at least {4 * len(factor)} tokens of varied text"
            )
        return factor

    def solve(self, key: Float[Tensor, " d_mlp"]) -> Float[Tensor, " d_mlp"]:
        """C^-1 k, in float64 on the CPU.

        Raises:
            NumericsError: If C is singular.
        """
        return torch.cholesky_solve(key.detach().double().cpu()[:, None], self._cholesky)[:, 0]

    def check(self, model: HookedModel, layer: int) -> None:
        """Refuse statistics of another layer or model.

        Raises:
            InputError: If they are of another layer.
            ModelMismatchError: If they are of another model.
        """
        if self.layer != layer:
            raise InputError(f"the covariance is of layer {self.layer}, the edit is at layer {layer}")
        check_fingerprint(model, self.model, "the key covariance")

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify these statistics, as stored in float32."""
        return hashlib.sha256(self.second_moment.float().numpy().tobytes()).hexdigest()[:16]

    def save(self, path: str | Path) -> Path:
        """Write the upper triangle in float32, half the size of the matrix.

        Raises:
            StorageError: If the file cannot be written.
        """
        rows, columns = torch.triu_indices(*self.second_moment.shape)
        header = {name: getattr(self, name) for name in ("layer", "count", "source", "prepend_bos", "model")}
        tensors = {"upper_triangle": self.second_moment[rows, columns].float()}
        return save(path, _KIND, tensors, {**header, "d_mlp": len(self.second_moment)})

    @classmethod
    def load(cls, path: str | Path) -> "KeyCovariance":
        """Read statistics that `save` wrote.

        Raises:
            StorageError: If the file is damaged or holds something else.
        """
        tensors, header = load(path, _KIND)
        size = header.pop("d_mlp")
        rows, columns = torch.triu_indices(size, size)
        moment = torch.zeros(size, size, dtype=torch.float64)
        moment[rows, columns] = tensors["upper_triangle"].double()
        moment[columns, rows] = moment[rows, columns]
        return cls(moment, **{name: header[name] for name in ("layer", "count", "source", "prepend_bos", "model")})


def _batches(encoded: Iterable[Int[Tensor, " pos"]], batch_tokens: int) -> Iterator[list[Tensor]]:
    """Group texts in the order they come, so that rows x longest row stays within the bound."""
    batch: list[Tensor] = []
    for tokens in encoded:
        longest = max(len(tokens), *(len(other) for other in batch), 1)
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(tokens)
    if batch:
        yield batch


@torch.no_grad()
def _keys(model: HookedModel, layer: int, texts: list[Tensor]) -> Float[Tensor, "tokens d_mlp"]:
    batch = pad(texts)
    keys = read(model, batch.tokens, [key_hook(layer)])[key_hook(layer)]
    real = torch.arange(keys.shape[1]) < batch.lengths[:, None]
    return keys[real.to(keys.device)].float()
