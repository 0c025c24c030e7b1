"""What a change of one W_out writes, in tokens, and which subjects it is about."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_rome.audit.lens import direction_tokens
from tl_rome.audit.likely import standing_out, subject_shifts
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel

_DIRECTIONS = 3
_SUBJECTS = 5


@dataclass(frozen=True)
class Direction:
    """One output direction of a change, read by the logit lens; its sign is arbitrary."""

    share: float
    """Of the change's ||D||^2, in [0, 1]."""
    raised: tuple[str, ...]
    """Tokens that one end raises most."""
    lowered: tuple[str, ...]
    """Those that the other end raises most."""


@dataclass(frozen=True)
class Finding:
    """A change of one W_out, known or suspected."""

    place: MlpMatrix
    """The matrix."""
    rank: int
    """Of the change."""
    relative_size: float
    """||D|| / ||W|| (Frobenius), W without the change."""
    directions: tuple[Direction, ...]
    """The first few."""
    shifts: tuple[tuple[str, float], ...]
    """The candidates that it moves most, and how much relative to the value that they had."""
    subjects: tuple[str, ...]
    """Those that stand out from all candidates, at most as many as the rank: an edit of n facts has rank n."""
    score: float | None = None
    """Without a base: its largest singular value over the edge of the bulk, see `spectrum`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "place": str(self.place)}


def describe_change(
    model: HookedModel,
    place: MlpMatrix,
    change: Float[Tensor, "d_mlp d_model"],
    right: Float[Tensor, "d_model directions"],
    *,
    rank: int,
    subjects: Sequence[str],
    score: float | None = None,
) -> Finding:
    """Look at a change that is in a model's W_out.

    Args:
        model: With the change; left as found.
        place: The W_out.
        change: What was added to it; float64, on the CPU.
        right: Its output directions, of length 1, strongest first.
        rank: Of the change.
        subjects: Candidates.
        score: See `Finding`.
    """
    weight = place.weight(model).detach().cpu().double()
    shares = (change @ right).square().sum(0) / change.square().sum()
    directions = tuple(
        Direction(float(share), *direction_tokens(model, place, direction))
        for share, direction in zip(shares[:_DIRECTIONS], right.T[: min(rank, _DIRECTIONS)], strict=False)
    )
    shifts = subject_shifts(model, place, change, subjects)
    named = standing_out(shifts)[:rank]
    size = float(change.norm() / (weight - change).norm())
    return Finding(place, rank, size, directions, tuple(shifts.items())[:_SUBJECTS], named, score)
