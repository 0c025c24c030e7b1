"""What a trace returns."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import NumericsError, StorageError
from tl_rome.storage import load, save
from tl_rome.tokens import SubjectSpan

_KIND = "trace"


@dataclass(frozen=True, eq=False)
class TraceResult:
    """The effect of restoring one component at every layer and position of one prompt.

    Raises:
        NumericsError: If a score is not finite.
    """

    scores: Float[Tensor, "layer pos"]
    """Mean metric over the noise samples with the state restored; float64, on the CPU."""
    clean_score: float
    """Metric of the clean run."""
    corrupted_score: float
    """Mean metric of the corrupted runs with nothing restored."""
    component: str
    """What was restored, as in `Site`."""
    window: int
    """Layers restored together, before clipping at the edges."""
    clipping: str
    """Which layers a window covers, as in `layer_window`."""
    answer: str
    """The token whose probability is scored."""
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
    method: str
    """"sweep" or "plain"; both give the same numbers."""
    model: str
    """Fingerprint of the model."""

    def __post_init__(self) -> None:
        if not bool(self.scores.isfinite().all()):
            raise NumericsError("a traced score is not finite; look for NaN or inf in weights or corruption")

    @property
    def effects(self) -> Float[Tensor, "layer pos"]:
        """Indirect effects: score minus corrupted score."""
        return self.scores - self.corrupted_score

    @property
    def total_effect(self) -> float:
        """Clean minus corrupted score: what the corruption destroyed, the most that restoring can give back."""
        return self.clean_score - self.corrupted_score

    def strongest(self) -> tuple[int, int, float]:
        """Layer, position and score of the strongest cell."""
        layer, position = divmod(int(self.scores.argmax()), self.scores.shape[1])
        return layer, position, self.scores[layer, position].item()

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file.

        Raises:
            StorageError: If the file cannot be written.
        """
        header = {name: value for name, value in asdict(self).items() if name != "scores"}
        return save(path, _KIND, {"scores": self.scores}, header)

    @classmethod
    def load(cls, path: str | Path) -> "TraceResult":
        """Read a result that `save` wrote.

        Raises:
            StorageError: If the file is damaged or holds something else.
        """
        tensors, header = load(path, _KIND)
        fields = {name: header[name] for name in cls.__dataclass_fields__.keys() & header.keys()}
        try:
            fields["subject"] = SubjectSpan(**header["subject"])
            fields["labels"] = tuple(header["labels"])
            return cls(scores=tensors["scores"].to(torch.float64), **fields)
        except (KeyError, TypeError) as error:
            raise StorageError(f"{path} lacks part of a trace ({error}); make it again") from error
