"""How many tokens are enough: how u = C^-1 k* turns as the statistics behind C grow."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Count, Finite, Range
from tl_rome.editors.covariance.estimation import covariance_of, encoded_texts
from tl_rome.editors.covariance.moments import KeyMoments, stream_moments
from tl_rome.errors import InputError, NumericsError
from tl_rome.running.borrowed import borrowed
from tl_rome.sites import HookedModel

CONVERGENCE_COLUMNS = ("tokens", "cosine to the last: least", "mean", "norm over the last")
"""Over all keys."""


@dataclass(frozen=True, eq=False)
class Convergence:
    """The direction C^-1 k of some keys, at growing numbers of tokens, against the last."""

    tokens: tuple[int, ...]
    """Tokens behind C at each point."""
    cosine: Float[Tensor, "points keys"]
    """Between C^-1 k then and at the last point; 1 there. NaN while C is singular."""
    norm_ratio: Float[Tensor, "points keys"]
    """||C^-1 k|| then over that at the last point."""

    def __str__(self) -> str:
        lines = [CONVERGENCE_COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        return "\n".join(padded)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The figures of each point under `CONVERGENCE_COLUMNS`, for text and tables alike."""
        rows = []
        for tokens, cosine, ratio in zip(self.tokens, self.cosine, self.norm_ratio, strict=True):
            figures = f"{cosine.min():.4f}", f"{cosine.mean():.4f}", f"{ratio.mean():.3f}"
            rows.append((str(tokens), *(("C is singular", "", "") if bool(cosine.isnan().any()) else figures)))
        return rows

    def enough(self, cosine: Finite = 0.99) -> int | None:
        """Fewest tokens from which on every key's direction stays this close to the last, None if only the last does.

        Args:
            cosine: What counts as close.
        """
        close = (self.cosine >= cosine).all(dim=1).tolist()
        first = len(close) - next((i for i, good in enumerate(reversed(close)) if not good), len(close))
        return self.tokens[first] if first < len(close) - 1 else None


def measure_convergence(
    model: HookedModel,
    layer: int,
    texts: Iterable[Any],
    keys: Float[Tensor, "keys d_mlp"],
    *,
    max_tokens: Count,
    points: Annotated[int, Range(2)] = 6,
    max_batch_tokens: Count = 4096,
    text_column: str = "text",
    progress: bool = True,
) -> Convergence:
    """Follow C^-1 k while streaming over text; the number of tokens doubles from point to point.

    Args:
        model: Left as found.
        layer: Layer whose keys are wanted.
        texts: As `estimate_covariances` takes them.
        keys: Of some subjects, as `subject_keys` gives them.
        max_tokens: Tokens at the last point.
        points: How many points, the last included.
        max_batch_tokens: Padded tokens per batch.
        text_column: Where a data set's rows have the text.
        progress: Whether to show a progress bar over tokens.

    Raises:
        InputError: If the layer is out of range, keys are of another width, or texts are too few for two points.
        NumericsError: If a key is not finite, or C is singular at the last point.
    """
    if keys.shape[1] != model.cfg.d_mlp or not len(keys):
        raise InputError(f"keys have shape {tuple(keys.shape)}; give at least one row of {model.cfg.d_mlp} numbers")
    stops = sorted({max(1, max_tokens // 2**i) for i in range(points)})
    moments, tokens, solved = KeyMoments.zeros(model, [layer]), [], []
    stream = stream_moments(
        model,
        moments,
        encoded_texts(model, texts, text_column),
        max_batch_tokens=max_batch_tokens,
        stops=stops,
        progress=progress,
    )
    with borrowed(model):
        for _ in stream:
            if moments.count >= stops[len(tokens)]:
                tokens.append(moments.count)
                solved.append(_solve(model, moments, layer, keys))
    if len(tokens) < 2:
        raise InputError(f"the texts end after {moments.count} tokens, before the second point; lower max_tokens")
    if bool(solved[-1].isnan().any()):
        raise NumericsError(f"the key covariance is still singular after {tokens[-1]} tokens; raise max_tokens")
    directions = torch.stack(solved)
    cosine = torch.cosine_similarity(directions, directions[-1:], dim=-1)
    return Convergence(tuple(tokens), cosine, directions.norm(dim=-1) / directions[-1].norm(dim=-1))


def _solve(model: HookedModel, moments: KeyMoments, layer: int, keys: Tensor) -> Float[Tensor, "keys d_mlp"]:
    statistics = covariance_of(model, moments, layer, "")
    try:
        return statistics.solve(keys).cpu()
    except NumericsError:
        return torch.full(keys.shape, torch.nan, dtype=torch.float64)
