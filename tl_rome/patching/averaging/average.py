"""Average causal effects over many prompts, by token role and layer.

They are those of figure 2, and the averages that appendices B.1 and B.2 quote.

Every prompt counts once: where several of its tokens have a role ("middle subject tokens"), their mean is the prompt's
value, whereas the authors' code pools the tokens of all prompts. Intervals are over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_rome.arguments import Count, Seed, Share
from tl_rome.bootstrap import interval, resampled_means
from tl_rome.errors import InputError
from tl_rome.patching.averaging.roles import ROLES, Role, by_role, role_index
from tl_rome.patching.config import Clipping, Direction, Sever
from tl_rome.patching.result import TraceResult
from tl_rome.storage.files import load, save
from tl_rome.storage.parts import read_as, reading

_KIND = "average trace"
_SHARED = (
    "component",
    "window",
    "clipping",
    "direction",
    "metric",
    "severed",
    "samples",
    "corruption",
    "model",
)
"""What traces must agree in to be averaged."""


@dataclass(frozen=True)
class Peak:
    """The layer at which a role's average effect is largest (when noising: most negative)."""

    role: Role
    layer: int
    """Restored layer, or centre of the restored window."""
    effect: float
    """Average indirect effect there."""
    low: float
    """Lower end of the effect's interval."""
    high: float
    """Upper end of the effect's interval."""
    score: float
    """Average score there, over the prompts that have the role."""


@dataclass(frozen=True, eq=False)
class AverageTrace:
    """Mean indirect effect of patching one component, by layer and token role; NaN for roles that no prompt has."""

    curves: Float[Tensor, "prompt layer role"]
    """Each prompt's own effects, as in `TraceResult`; float64, 0 where the prompt lacks the role."""
    present: Bool[Tensor, "prompt role"]
    """Which roles each prompt has."""
    low: Float[Tensor, "layer role"]
    """Lower end of the bootstrap interval of `effects`, over prompts."""
    high: Float[Tensor, "layer role"]
    """Upper end."""
    clean: Float[Tensor, " prompt"]
    """Each prompt's clean score."""
    corrupted: Float[Tensor, " prompt"]
    """Each prompt's corrupted score."""
    best: Float[Tensor, " prompt"]
    """Each prompt's score at its strongest cell: the highest, when noising the lowest."""
    prompts: tuple[str, ...]
    """The prompts, without BOS."""
    confidence: float
    """Of the intervals, such as 0.95."""
    resamples: int
    """Bootstrap draws behind the intervals."""
    component: str
    """What was patched."""
    window: int
    """Layers patched together, before clipping."""
    clipping: Clipping
    """Which layers a window covers."""
    direction: Direction
    """"denoising" or "noising"."""
    metric: str
    """What is scored."""
    severed: Sever | None
    """What was frozen at the patched position."""
    samples: int
    """Corrupted runs per prompt."""
    corruption: str
    """Description of the corruption."""
    model: str
    """Fingerprint of the model."""

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.curves)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of prompts that have each role."""
        return tuple(self.present.sum(0).tolist())

    @property
    def effects(self) -> Float[Tensor, "layer role"]:
        """Mean indirect effects over the prompts that have the role."""
        return self.curves.sum(0) / self.present.sum(0)

    @property
    def clean_score(self) -> float:
        """Mean clean score."""
        return self.clean.mean().item()

    @property
    def corrupted_score(self) -> float:
        """Mean corrupted score."""
        return self.corrupted.mean().item()

    @property
    def sign(self) -> int:
        """1 where patching raises the score; -1 when noising, which lowers it."""
        return -1 if self.direction == "noising" else 1

    @property
    def base(self) -> Float[Tensor, " prompt"]:
        """Score of each prompt's run that was patched."""
        return self.clean if self.direction == "noising" else self.corrupted

    def mean_maximum(self, role: Role | None = None) -> float:
        """Mean over prompts of the score at the strongest cell, of all cells or of one role's.

        Where a role has several tokens, the strongest layer for their mean is meant.

        Raises:
            InputError: If the role is unknown, or no prompt has it.
        """
        if role is None:
            return self.best.mean().item()
        index = self._having(role)
        having = self.present[:, index]
        strongest = self.sign * (self.sign * self.curves[having, :, index]).amax(1)
        return (strongest + self.base[having]).mean().item()

    def peak(self, role: Role | None = None) -> Peak:
        """The layer with the strongest average effect at a role, or at the strongest role.

        Raises:
            InputError: If the role is unknown, or no prompt has it.
        """
        effects = (self.sign * self.effects).nan_to_num(nan=-torch.inf)
        index = self._having(role or ROLES[int(effects.amax(0).argmax())])
        layer = int(effects[:, index].argmax())
        effect, low, high = (values[layer, index].item() for values in (self.effects, self.low, self.high))
        score = effect + self.base[self.present[:, index]].mean().item()
        return Peak(ROLES[index], layer, effect, low, high, score)

    def _having(self, role: Role) -> int:
        index = role_index(role)
        if not self.counts[index]:
            raise InputError(f"none of the {self.n} prompts has a role {role!r}; choose another")
        return index

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file.

        Raises:
            StorageError: If the file cannot be written.
        """
        tensors, header = {}, {}
        for name, value in vars(self).items():
            (tensors if isinstance(value, Tensor) else header)[name] = value
        bounds = {name: tensors[name].nan_to_num(nan=0.0) for name in ("low", "high")}
        return save(path, _KIND, {**tensors, **bounds}, header)

    @classmethod
    def load(cls, path: str | Path) -> "AverageTrace":
        """Read an average that `save` wrote.

        Raises:
            StorageError: If the file is damaged or holds something else.
        """
        tensors, header = load(path, _KIND)
        fields: dict[str, Any] = {k: v for k, v in {**tensors, **header}.items() if k in cls.__dataclass_fields__}
        with reading(path, "an average trace"):
            absent = ~fields["present"].any(0)
            for name in ("low", "high"):
                fields[name] = fields[name].masked_fill(absent, torch.nan)
            found = read_as(cls, fields)
            prompts, layers, roles = found.curves.shape
            wanted = {"present": (prompts, roles), "low": (layers, roles), "high": (layers, roles)}
            wanted |= dict.fromkeys(("clean", "corrupted", "best"), (prompts,))
            if len(found.prompts) != prompts or any(fields[name].shape != shape for name, shape in wanted.items()):
                raise ValueError(f"its parts are of different numbers of prompts, layers or roles than {prompts}")
            return found


def average_traces(
    results: Sequence[TraceResult],
    *,
    seed: Seed = 0,
    confidence: Share = 0.95,
    resamples: Count = 2000,
) -> AverageTrace:
    """Average traces of one component over prompts.

    Args:
        results: One trace per prompt, all made in the same way.
        seed: Of the bootstrap.
        confidence: Of the intervals.
        resamples: Bootstrap draws.

    Returns:
        Mean effects by layer and role, with percentile intervals over prompts.

    Raises:
        InputError: If there are no traces, or they differ in how they were made or have units.
    """
    if not results:
        raise InputError("there are no traces to average; trace at least one prompt")
    if results[0].units:
        raise InputError("these traces have a third axis of units; average `result.of_unit(unit)` of each")
    shared = {name: getattr(results[0], name) for name in _SHARED}
    for result in results:
        for name, value in shared.items():
            if getattr(result, name) != value:
                raise InputError(
                    f"traces differ in {name}: {value!r} and {getattr(result, name)!r}; average those that agree"
                )
    curves, present = map(torch.stack, zip(*(by_role(r.effects, r.subject) for r in results), strict=True))
    generator = torch.Generator().manual_seed(seed)
    draws = resampled_means(curves, present, resamples=resamples, generator=generator)
    low, high = interval(draws, confidence)
    return AverageTrace(
        curves=curves,
        present=present,
        low=low,
        high=high,
        clean=torch.tensor([result.clean_score for result in results], dtype=torch.float64),
        corrupted=torch.tensor([result.corrupted_score for result in results], dtype=torch.float64),
        best=torch.tensor([result.strongest().score for result in results], dtype=torch.float64),
        prompts=tuple(result.prompt for result in results),
        confidence=confidence,
        resamples=resamples,
        **shared,
    )
