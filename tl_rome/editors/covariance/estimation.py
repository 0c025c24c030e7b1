"""Estimating key statistics from text: a corpus, a data set of the hub, or the model's own samples."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.arguments import Count
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.covariance.moments import Encoded, KeyMoments, stream_moments
from tl_rome.errors import InputError
from tl_rome.generation import sample_tokens, start_token
from tl_rome.running.borrowed import borrowed
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import packed_matrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint
from tl_rome.tokens import encode

_log = logging.getLogger(__name__)
_SAMPLED_LENGTH = 128


def estimate_covariance(model: HookedModel, layer: int, texts: Iterable[Any], **options: Any) -> KeyCovariance:
    """Statistics of one layer; see `estimate_covariances`, which takes the same options, for several in one pass.

    Args:
        model: Left as found.
        layer: Layer whose keys are wanted.
        texts: Strings, or the rows of a `datasets` data set.
        **options: `source`, which is required, and those of `estimate_covariances`.

    Raises:
        TLRomeError: As `estimate_covariances` does.
    """
    return estimate_covariances(model, [layer], texts, **options)[layer]


def estimate_covariances(
    model: HookedModel,
    layers: Sequence[int],
    texts: Iterable[Any],
    *,
    source: str,
    max_tokens: Count | None = None,
    max_batch_tokens: Count = 4096,
    text_column: str = "text",
    checkpoint: str | Path | None = None,
    checkpoint_tokens: Count = 1_000_000,
    progress: bool = True,
) -> dict[int, KeyCovariance]:
    """Statistics of several layers in one pass over text, each text cut at the model's context.

    The authors' statistics are of 100,000 Wikipedia articles: here
    `datasets.load_dataset("wikimedia/wikipedia", "20231101.en", split="train", streaming=True)`.

    Args:
        model: Left as found; run up to the highest layer only.
        layers: Layers whose keys are wanted.
        texts: Strings, or the rows of a `datasets` data set; read once, never held as a whole. Blank ones are
            skipped.
        source: Name of the texts, kept with the result.
        max_tokens: Stop with the text in which this many tokens are reached.
        max_batch_tokens: Padded tokens per batch; memory is bounded by 16 batches of token ids, one batch of
            activations, and a float64 matrix [d_mlp, d_mlp] per layer.
        text_column: Where a data set's rows have the text.
        checkpoint: File that keeps unfinished work: begun again with the same texts in the same order, the estimate
            goes on where it was, to the same result. It stays when the work is done, so that more tokens can be added.
        checkpoint_tokens: Tokens between two writings of it.
        progress: Whether to show a progress bar over tokens.

    Raises:
        InputError: If a layer is out of range, or there is no layer or no text.
        NumericsError: If a key is not finite.
        StorageError: If the checkpoint is damaged or of something else.
    """
    with borrowed(model):
        return _estimated(
            model,
            layers,
            encoded_texts(model, texts, text_column),
            source,
            Path(checkpoint) if checkpoint is not None else None,
            checkpoint_tokens,
            max_batch_tokens=max_batch_tokens,
            stops=() if max_tokens is None else (max_tokens,),
            progress=progress,
        )


def _estimated(
    model: HookedModel,
    layers: Sequence[int],
    encoded: Iterator[Encoded],
    source: str,
    checkpoint: Path | None,
    checkpoint_tokens: int,
    **streaming: Any,
) -> dict[int, KeyCovariance]:
    moments = _no_moments(model, layers)
    if checkpoint is not None and checkpoint.exists():
        moments = KeyMoments.load(checkpoint, model, layers, source)
    saved = moments.count
    for _ in stream_moments(model, moments, encoded, **streaming):
        if checkpoint is not None and moments.count - saved >= checkpoint_tokens:
            moments.save(checkpoint, model, source)
            saved = moments.count
    if checkpoint is not None and moments.count > saved:
        moments.save(checkpoint, model, source)
    return {layer: covariance_of(model, moments, layer, source) for layer in layers}


def _no_moments(model: HookedModel, layers: Sequence[int]) -> KeyMoments:
    """Sums over no text.

    Raises:
        InputError: If there is no layer, or one is out of range.
    """
    if not layers:
        raise InputError("there are no layers to estimate a covariance of; give at least one")
    return KeyMoments.zeros(model, layers)


def covariance_of(model: HookedModel, moments: KeyMoments, layer: int, source: str) -> KeyCovariance:
    """The statistics that sums stand for.

    Raises:
        InputError: If nothing has been added up.
        NumericsError: If a key was not finite.
    """
    if moments.count == 0:
        raise InputError(f"no text to estimate a covariance from ({source})")
    place = MlpMatrix(layer)
    packed = packed_matrix(model, place)
    run_in = place.weight(model) if packed is None else packed.like
    return KeyCovariance(
        moments.moment(layer),
        layer,
        moments.count,
        source,
        bool(model.cfg.default_prepend_bos),
        fingerprint(model),
        moments.mean(layer),
        str(run_in.dtype).removeprefix("torch."),
    )


def covariance_from_samples(model: HookedModel, layer: int, **options: Any) -> KeyCovariance:
    """Statistics of one layer; see `covariances_from_samples`, which takes the same options.

    Args:
        model: Left as found.
        layer: Layer whose keys are wanted.
        **options: `generator`, which is required, and the others of `covariances_from_samples`.

    Raises:
        TLRomeError: As `covariances_from_samples` does.
    """
    return covariances_from_samples(model, [layer], **options)[layer]


def covariances_from_samples(
    model: HookedModel,
    layers: Sequence[int],
    *,
    generator: torch.Generator,
    tokens: Count = 32_768,
    batch_size: Count = 64,
    progress: bool = True,
) -> dict[int, KeyCovariance]:
    """Statistics of text that the model samples from its start token: the fallback where there is no corpus.

    The text does not depend on the layers, so each gets the statistics that it would get alone.

    Args:
        model: Left as found.
        layers: Layers whose keys are wanted.
        generator: Source of the draws.
        tokens: How many tokens to sample, at least; must well exceed d_mlp.
        batch_size: Texts sampled at once.
        progress: Whether to show progress bars, over the tokens of each batch of texts and over all tokens.

    Raises:
        InputError: If a layer is out of range, or there is none.
        NumericsError: If a key is not finite.
    """
    _log.warning(
        "estimating the key covariance of layer %s from %d tokens of text that the model samples itself; "
        "a corpus is better: estimate_covariance(model, layer, texts, source=...)",
        ", ".join(map(str, layers)),
        tokens,
    )
    length = min(_SAMPLED_LENGTH, model.cfg.n_ctx - 1)

    def texts() -> Iterator[Int[Tensor, " pos"]]:
        for _ in range(-(-tokens // (batch_size * length))):
            start = torch.full((batch_size, 1), start_token(model))
            drawn = sample_tokens(model, start, length, generator=generator, top_k=None, progress=progress)
            yield from drawn[:, 1:]

    with borrowed(model):
        moments = _no_moments(model, layers)
        for _ in stream_moments(
            model, moments, texts(), max_batch_tokens=batch_size * length, stops=(tokens,), progress=progress
        ):
            pass
        return {layer: covariance_of(model, moments, layer, "own samples") for layer in layers}


def encoded_texts(model: HookedModel, texts: Iterable[Any], column: str) -> Iterator[Encoded]:
    """Token ids of strings or of a data set's rows, None for blank ones.

    Raises:
        InputError: If a row is neither a string nor has one in this column.
    """
    for row in texts:
        text = row
        if isinstance(row, Mapping):
            if column not in row:
                raise InputError(f"a row has no column {column!r}, only {sorted(row)}; say text_column=")
            text = row[column]
        if not isinstance(text, str):
            raise InputError(f"a text is {text!r}, not a string; give strings, or a data set with a text column")
        yield encode(model, text, truncate=True) if text.strip() else None
