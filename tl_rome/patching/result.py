"""What a trace returns."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import InputError, NumericsError
from tl_rome.figures import png
from tl_rome.patching.config import Clipping, Direction, Method, Sever
from tl_rome.storage.files import load, save
from tl_rome.storage.parts import read_as, reading
from tl_rome.tokens import SubjectSpan

TRACE_KIND = "trace"
"""Kind of file that holds one."""
NOTHING = 1e-6
"""Relative change of a score that rounding makes by itself."""


class StrongestCell(NamedTuple):
    """Where a trace's effect is largest."""

    layer: int
    position: int
    score: float
    unit: str | None = None
    """Label of the head or group of features, where states were split."""


@dataclass(frozen=True, eq=False, repr=False)
class TraceResult:
    """The effect of patching one component at every layer and position of one prompt.

    Raises:
        NumericsError: If a score is not finite.
    """

    scores: Float[Tensor, "layer pos *unit"]
    """Mean metric over the noise samples with the state patched; float64, on the CPU."""
    clean_score: float
    """Metric of the clean run."""
    corrupted_score: float
    """Mean metric of the corrupted runs with nothing restored."""
    component: str
    """What was patched, in the spelling of `component_name`."""
    window: int
    """Layers patched together, before clipping at the edges."""
    clipping: Clipping
    """Which layers a window covers, as in `layer_window`."""
    prompt: str
    """The prompt, without BOS."""
    answer: str
    """The token, or tokens, of the answer: what the metric scores, unless it is the user's own."""
    predicted: str
    """The token that the clean model thinks most likely."""
    labels: tuple[str, ...]
    """One readable string per position."""
    subject: SubjectSpan
    """Positions of the subject."""
    prepend_bos: bool
    """Whether the first position is a BOS token."""
    samples: int
    """Corrupted runs that the scores are averaged over."""
    corruption: str
    """Description of the corruption."""
    method: Method | Literal["attribution"]
    """"incremental" or "plain", which give the same numbers, or "attribution", which approximates them."""
    model: str
    """Fingerprint of the model."""
    metric: str = "prob"
    """What is scored: "prob", "logprob" (nats), or a description of the user's own function."""
    direction: Direction = "denoising"
    """"denoising": clean states were restored in corrupted runs; "noising": corrupted states were put into a clean one.
    """
    severed: Sever | None = None
    """"mlp" or "attn" if those outputs were frozen at the patched position."""
    units: tuple[str, ...] = ()
    """Labels of the last axis, where states were split into heads or groups of features."""

    def __post_init__(self) -> None:
        if not bool(self.scores.isfinite().all()):
            raise NumericsError("a traced score is not finite; look for NaN or inf in weights or corruption")

    @property
    def base_score(self) -> float:
        """Score of the run that was patched: corrupted when denoising, clean when noising."""
        return self.clean_score if self.direction == "noising" else self.corrupted_score

    @property
    def effects(self) -> Float[Tensor, "layer pos *unit"]:
        """Indirect effects (section 2.1): score minus that of the patched run; when noising, mostly negative."""
        return self.scores - self.base_score

    @property
    def total_effect(self) -> float:
        """Clean minus corrupted score (section 2.1): what the corruption destroyed, and restoring can bring back."""
        return self.clean_score - self.corrupted_score

    @property
    def normalized(self) -> Float[Tensor, "layer pos *unit"]:
        """(patched - corrupted) / (clean - corrupted): 0 where nothing came back, 1 where all did, of any metric.

        Of a noising trace 1 is where nothing was destroyed.

        Raises:
            NumericsError: If the corruption changed nothing that could be told from rounding.
        """
        total, size = self.total_effect, max(abs(self.clean_score), abs(self.corrupted_score))
        if not abs(total) > NOTHING * size:
            raise NumericsError(
                f"clean and corrupted runs of {self.prompt!r} score the same ({self.clean_score:.3g}), so there is "
                "no scale for effects; choose another metric or corruption, or read `effects`"
            )
        return (self.scores - self.corrupted_score) / total

    def strongest(self) -> "StrongestCell":
        """The cell with the largest effect."""
        effects = -self.effects if self.direction == "noising" else self.effects
        cell = torch.unravel_index(effects.argmax(), effects.shape)
        unit = self.units[int(cell[2])] if self.units else None
        return StrongestCell(int(cell[0]), int(cell[1]), self.scores[cell].item(), unit)

    def __repr__(self) -> str:
        """One line; the fields themselves are `vars(result)`."""
        layer, position, score, unit = self.strongest()
        shape = " x ".join(map(str, self.scores.shape))
        of_unit = "" if unit is None else f" unit {unit}"
        return (
            f"TraceResult({self.component} of {self.prompt!r}, answer {self.answer!r}: scores {shape}, strongest "
            f"{score:.3g} at layer {layer} {self.labels[position]!r}{of_unit}, {self.clean_score:.3g} clean, "
            f"{self.corrupted_score:.3g} corrupted)"
        )

    def _repr_html_(self) -> str:
        """What notebooks show: the heat map, at the position of the strongest effect if there are units."""
        import matplotlib.pyplot as plt

        from tl_rome.patching import plot_trace  # at import time this would be a circle

        figure: Any = plot_trace(self).figure
        try:
            image = b64encode(png(figure)).decode()
        finally:
            plt.close(figure)
        return f'<img style="max-width: 100%" alt="{escape(repr(self))}" src="data:image/png;base64,{image}"/>'

    def of_unit(self, unit: int | str) -> "TraceResult":
        """The trace of one head or group of features, [layer, pos] like any other.

        Args:
            unit: Index or label.

        Raises:
            InputError: If the trace does not have it.
        """
        index = self.units.index(unit) if isinstance(unit, str) and unit in self.units else unit
        if not isinstance(index, int) or not 0 <= index < len(self.units):
            raise InputError(f"unit {unit!r} is not one of {self.units or 'this trace, whose states were not split'}")
        component = f"{self.component}[{self.units[index]}]"
        return replace(self, scores=self.scores[..., index], units=(), component=component)

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file.

        Raises:
            StorageError: If the file cannot be written.
        """
        return save(path, TRACE_KIND, *self.to_file())

    @classmethod
    def load(cls, path: str | Path) -> "TraceResult":
        """Read a result that `save` wrote.

        Raises:
            StorageError: If the file is damaged or holds something else.
        """
        return cls.from_file(*load(path, TRACE_KIND), path)

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps of the trace: tensors, and a JSON-serialisable header."""
        return {"scores": self.scores}, {name: value for name, value in asdict(self).items() if name != "scores"}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: str | Path) -> "TraceResult":
        """The trace that `to_file` took apart; the path is for messages.

        Raises:
            StorageError: If a part is missing, or is not what it should be.
        """
        known = {name: header[name] for name in cls.__dataclass_fields__.keys() & header.keys()}
        with reading(path, "a trace"):
            if header["method"] == "sweep":
                known["method"] = "incremental"  # its earlier name
            found = read_as(cls, {**known, "scores": tensors["scores"].to(torch.float64)})
            axes = found.scores.shape[1:]
            if axes != (len(found.labels), *[len(found.units)] * bool(found.units)) or found.subject.end > axes[0]:
                raise ValueError(f"scores {tuple(found.scores.shape)} of {len(found.labels)} positions")
            return found
