"""The trace's effect beside the edit's score, fact by fact and layer by layer, and what follows from the two."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_rome.arguments import Count, Seed, Share
from tl_rome.bootstrap import interval, resampled_means
from tl_rome.counterfact.experiments.localization.scores import SCORES
from tl_rome.counterfact.experiments.localization.statistics import Correlation, Explained, correlate, explain
from tl_rome.counterfact.report.tables import Estimate
from tl_rome.errors import InputError
from tl_rome.grid import Grid
from tl_rome.storage.files import load, save
from tl_rome.storage.parts import read_as, reading

if TYPE_CHECKING:
    import pandas

_KIND = "localization report"
_FEWEST = 4
"""Facts, two of them held out: fewer vary too little for any statistic."""


@dataclass(frozen=True)
class ChosenLayer:
    """A way to choose the layer to edit, and how edits did there on the facts that the choice did not see."""

    name: str
    """The way."""
    layer: int | None
    """The layer; None where every fact has its own."""
    scores: tuple[Estimate, ...]
    """Mean edit scores over the facts that are not held out, in the order of `SCORES`."""


@dataclass(frozen=True, eq=False, repr=False)
class LocalizationReport:
    """What restoring a layer did for a fact beside what editing that layer did to it; `localization_report` makes one.

    It has a `.layer`, so that editors take it: `Rome.prepare(model, layer=report)`.

    Raises:
        InputError: If there are fewer than four facts, all or none are held out, or parts differ in size.
    """

    effects: Float[Tensor, "component fact layer"]
    """Indirect effect (section 2.1) of restoring each component at the subject's last token: in probability by default.
    """
    scores: Float[Tensor, "score fact layer"]
    """Edit scores in [0, 1], see `SCORES`; NaN for facts without such prompts."""
    held_out: Bool[Tensor, " fact"]
    """Facts that layers are chosen on; what is reported of a chosen layer is measured on the others."""
    layers: tuple[int, ...]
    """Layers that were edited."""
    components: tuple[str, ...]
    """What was restored."""
    windows: tuple[int, ...]
    """Layers restored together, for each component."""
    corruption: str
    """How the subject was corrupted."""
    cases: tuple[int, ...]
    """case_id of each fact."""
    prompts: tuple[str, ...]
    """Prompt of each fact."""
    left_out: tuple[tuple[int, str], ...]
    """Facts that could not be traced or edited at some layer, with the reason."""
    model: str
    """Fingerprint of the model."""
    confidence: Share = 0.95
    """Of the intervals."""
    resamples: Count = 2000
    """Bootstrap draws of facts."""
    seed: Seed = 0
    """Of the split, of these draws and of the random orders of layers."""

    def __post_init__(self) -> None:
        facts, layers = len(self.cases), len(self.layers)
        shapes = tuple(self.effects.shape), tuple(self.scores.shape), tuple(self.held_out.shape)
        wanted = (len(self.components), facts, layers), (len(SCORES), facts, layers), (facts,)
        if shapes != wanted or not len(self.windows) == len(self.components) or len(self.prompts) != facts:
            raise InputError(f"parts of a report have shapes {shapes}; for its facts and layers they are {wanted}")
        if facts < _FEWEST or not 0 < int(self.held_out.sum()) < facts or not layers or not self.components:
            raise InputError(
                f"{facts} facts, {int(self.held_out.sum())} of them held out, at {layers} layers; give at least "
                f"{_FEWEST} that can be traced and edited, some of them held out, at one layer or more"
            )

    @property
    def n(self) -> int:
        """Number of facts."""
        return len(self.cases)

    @cached_property
    def layer(self) -> int:
        """The layer with the best mean overall edit score over the held-out facts."""
        return self.layers[int(self._score("overall")[self.held_out].mean(0).argmax())]

    @cached_property
    def choices(self) -> tuple[ChosenLayer, ...]:
        """Ways to choose the layer on the held-out facts, and the edit scores on the others.

        The layer of the best edits; for each component the one where its mean effect peaks, and for each fact the one
        where its own effect peaks (which looks at the fact itself, as tracing can); and a random one, whose score is
        the mean over layers.
        """
        ways: list[tuple[str, int | None, Tensor]] = [
            ("best edits", self.layer, self._only(torch.tensor(self.layers.index(self.layer))))
        ]
        for name, effects in zip(self.components, self.effects, strict=True):
            peak = effects[self.held_out].mean(0).argmax()
            ways.append((f"peak of {name}", self.layers[int(peak)], self._only(peak)))
            ways.append((f"each fact's peak of {name}", None, self._only(effects.argmax(-1))))
        ways.append(("random layer", None, torch.full((self.n, len(self.layers)), 1 / len(self.layers))))
        scores = self.scores[:, ~self.held_out]
        present = ~scores.isnan().any(-1).T
        weights = torch.stack([weight for _, _, weight in ways]).double()[:, ~self.held_out]
        values = torch.einsum("wfl,sfl->fws", weights, scores.double().nan_to_num())
        generator = torch.Generator().manual_seed(self.seed)
        draws = resampled_means(values, present, resamples=self.resamples, generator=generator)
        ends, n = interval(draws, self.confidence), present.sum(0)
        means = (values * present[:, None]).sum(0) / n
        found = torch.stack([means, *ends], -1).tolist()
        return tuple(
            ChosenLayer(name, layer, tuple(Estimate(*each, n=int(k)) for each, k in zip(row, n, strict=True)))
            for (name, layer, _), row in zip(ways, found, strict=True)
        )

    @cached_property
    def explained(self) -> tuple[Explained, ...]:
        """How much of each score the layer explains, and what the effect of each component adds; over all facts."""
        return tuple(explain(name, score, x, y, **self._options) for name, score, x, y in self._pairs())

    @cached_property
    def correlations(self) -> tuple[Correlation, ...]:
        """Effect and score of the same layer over all facts, layer by layer."""
        found = (correlate(name, score, self.layers, x, y, **self._options) for name, score, x, y in self._pairs())
        return tuple(row for rows in found for row in rows)

    @property
    def _options(self) -> dict[str, Any]:
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}

    def _pairs(self) -> list[tuple[str, str, Tensor, Tensor]]:
        """Every component with every score, over the facts that have the score."""
        found = []
        for component, effects in zip(self.components, self.effects, strict=True):
            for score in SCORES:
                having = ~self._score(score).isnan().any(-1)
                if int(having.sum()) > 1:
                    found.append((component, score, effects[having], self._score(score)[having]))
        return found

    def _score(self, score: str) -> Float[Tensor, "fact layer"]:
        return self.scores[SCORES.index(score)]

    def _only(self, place: Tensor) -> Float[Tensor, "fact layer"]:
        """Weights that pick one layer for each fact."""
        return torch.nn.functional.one_hot(place.expand(self.n), len(self.layers)).double()

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each fact and layer: case_id, prompt, held_out, layer, effect of each component, each score."""
        import pandas

        repeated = {"case_id": self.cases, "prompt": self.prompts, "held_out": self.held_out.tolist()}
        columns: dict[str, Any] = {k: [each for each in v for _ in self.layers] for k, v in repeated.items()}
        columns["layer"] = list(self.layers) * self.n
        tables = zip((*self.components, *SCORES), (*self.effects, *self.scores), strict=True)
        return pandas.DataFrame({**columns, **{name: table.flatten().numpy() for name, table in tables}})

    def grids(self, scores: Sequence[str] = SCORES) -> list[Grid]:
        """Three tables: ways to choose the layer, what the trace explains, correlations by layer.

        Args:
            scores: Those of `SCORES` to show.

        Raises:
            InputError: If a score is unknown.
        """
        check_scores(scores)
        ends, test = f"[{self.confidence:.0%} interval over facts]", self.n - int(self.held_out.sum())
        shown = [SCORES.index(score) for score in scores]
        layers = tuple(
            (way.name, "-" if way.layer is None else str(way.layer), *(way.scores[i].text(3) for i in shown))
            for way in self.choices
        )
        chosen = f"Edit scores of {test} facts {ends}, at layers chosen on {self.n - test} others."
        fits = tuple(
            (
                *(f"{each.component}, {each.score}", str(each.n), f"{each.layer_only:.3f}", f"{each.trace_only:.3f}"),
                *(each.gain.text(3), each.random.text(3), f"{each.p_random:.3f}"),
            )
            for each in self.explained
            if each.score in scores
        )
        fitted = f"R^2 of edit scores {ends}; random: the gain of effects at layers in random order."
        by_layer = tuple(
            (f"{each.component}, {each.score}, {each.layer}", each.pearson.text(2), each.spearman.text(2))
            for each in self.correlations
            if each.score in scores
        )
        correlated = f"Correlations of trace effect and edit score over {self.n} facts {ends}."
        return [
            Grid(chosen, ("layer by", "layer", *scores), layers),
            Grid(fitted, ("effect, score", "n", "layer", "trace", "gain of trace", "random", "p"), fits),
            Grid(correlated, ("effect, score, layer", "Pearson", "Spearman"), by_layer),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The statistics as plain JSON types; what is not finite is null. `save` keeps the report itself."""
        parts = {name: getattr(self, name) for name in ("choices", "explained", "correlations", "left_out")}
        split = {"held_out": [case for case, held in zip(self.cases, self.held_out.tolist(), strict=True) if held]}
        about = {name: getattr(self, name) for name in ("layers", "components", "windows", "corruption", "cases")}
        found = {name: [asdict(one) if name != "left_out" else one for one in rows] for name, rows in parts.items()}
        return _plain({"layer": self.layer, "n": self.n, **split, **about, **found})

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file.

        Raises:
            StorageError: If the file cannot be written.
        """
        tensors, header = {}, {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            (tensors if isinstance(value, Tensor) else header)[name] = value
        return save(path, _KIND, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "LocalizationReport":
        """Read a report that `save` wrote.

        Raises:
            StorageError: If the file is damaged or holds something else.
        """
        tensors, header = load(path, _KIND)
        known = {**tensors, **header}
        with reading(path, "a localization report"):
            return read_as(cls, {name: known[name] for name in cls.__dataclass_fields__})

    def __str__(self) -> str:
        """The layer and how it did, in one line."""
        best, overall = self.choices[0], SCORES.index("overall")
        return (
            f"layer {self.layer} (best mean edit score on {int(self.held_out.sum())} held-out facts; "
            f"{best.scores[overall].text(3)} on {best.scores[overall].n} others)"
        )

    def __repr__(self) -> str:
        return f"<LocalizationReport of {self.n} facts at layers {', '.join(map(str, self.layers))}: {self}>"


def check_scores(scores: Sequence[str]) -> None:
    """Refuse what is no edit score.

    Raises:
        InputError: If one is not of `SCORES`.
    """
    if unknown := [score for score in scores if score not in SCORES]:
        raise InputError(f"there is no score {unknown[0]!r}; choose among {', '.join(SCORES)}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
