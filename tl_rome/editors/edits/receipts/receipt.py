"""What an edit did, in figures that fit on one screen."""

from collections.abc import Iterable
from dataclasses import dataclass

from tl_rome.editors.edits.receipts.verdict import Taken, Verdict
from tl_rome.running.matrices import MatrixName, MlpMatrix
from tl_rome.storage.text import visible


@dataclass(frozen=True, kw_only=True)
class UpdateFigures:
    """What an editor knows of an update before any model has it: its own choices, and sizes."""

    preset: str
    """Settings that were followed."""
    departures: str = ""
    """Settings that are not those of the preset."""
    layer_choice: str
    """Why this layer, or these."""
    contexts: int = 1
    """Prefixes averaged over, the empty one included."""
    contexts_choice: str = "given"
    """How the prefixes were chosen."""
    covariance: str | None = None
    """Where the key statistics came from, and of how many tokens; None for an editor that uses none."""
    divisor: float | None = None
    """k . u with u of unit norm: what v* - W k is divided by; a small one makes a large, damaging edit."""
    divisor_ratio: float | None = None
    """Divisor over the one that C predicts, k* C^-1 k* / ||C^-1 k*||; 1 where one key is used in both places."""
    disturbance: float | None = None
    """Root mean square of what the edit adds to the MLP output on the text behind C, over that of the output."""
    key_norm: float | None = None
    """||k*||, None where no key is used."""
    losses: tuple[float, ...] = ()
    """The loss at each evaluation, in nats."""


@dataclass(frozen=True)
class MatrixChange:
    """Size of what an edit adds to one matrix."""

    layer: int
    """Block index."""
    matrix: MatrixName
    """Which of the layer's matrices."""
    rank: int | None
    """Columns of the update's factors; None for a dense one."""
    relative: float
    """||delta W|| / ||W||, Frobenius norms."""


@dataclass(frozen=True, kw_only=True)
class Receipt(UpdateFigures):
    """Measured effect and size of one edit; `finish_edit` makes it."""

    changes: tuple[MatrixChange, ...]
    """What changed, in the order of the edit's updates."""
    prompt: str
    """The rewriting prompt."""
    target_new: str
    """The requested object."""
    target_true: str | None
    """The object before, if it was stated."""
    prob_new: tuple[float, float]
    """Probability of `target_new`, the product over its tokens, before and after."""
    prob_true: tuple[float, float] | None
    """Probability of `target_true` before and after."""
    rank_new: tuple[int, int] | None = None
    """Place of the first token of `target_new` among all next tokens, before and after; 1 is the most likely."""
    rank_true: tuple[int, int] | None = None
    """The same of `target_true`."""
    text_nll: tuple[float, float] | None = None
    """Negative log-likelihood of a token of a few plain sentences before and after, in nats."""
    text_entropy: tuple[float, float] | None = None
    """Entropy of the next token in those sentences before and after, in nats."""
    evaluations: int
    """Loss evaluations that the edit took."""
    final_loss: float | None
    """Loss at the last of them, in nats; None where there was none."""
    seconds: float
    """Wall-clock time of the edit, without covariance and contexts."""
    verdict: Verdict | None = None
    """Whether the edit took, see `verdict`; None in a file that is older than verdicts."""
    preferred: bool | None = None
    """Whether `target_new` is more likely than `target_true` afterwards; of rank 1, where no true one is stated."""
    said: bool | None = None
    """Whether greedy continuation of the prompt begins with `target_new` afterwards."""
    said_again: bool | None = None
    """Whether it does so after another text, which stands for a paraphrase; None if it did not fit the context."""
    runs_as_hooks: str | None = None
    """Why the edit runs as hooks on the model that it was made on: what is packed there; None where it is written."""
    warnings: tuple[str, ...] = ()
    """What suggests that the edit does damage (`safety`) or did not take (`verdict`); empty for a sound one."""

    @property
    def title(self) -> str:
        """What was asked for, in one line."""
        return f"Edit of {self.prompt!r} to {self.target_new!r}"

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that changed, each once, lowest first."""
        return tuple(sorted({change.layer for change in self.changes}))

    @property
    def relative_change(self) -> float:
        """||delta W|| / ||W|| of the matrix that changed most."""
        return max((change.relative for change in self.changes), default=0.0)

    def rows(self) -> list[tuple[str, str]]:
        """Name and figures of everything worth reading, for text and tables alike; warnings come last."""
        rows = [("verdict", self._verdict())]
        rows.append((f"P({self.target_new})", _before_and_after(self.prob_new, self.rank_new)))
        if self.prob_true is not None:
            rows.append((f"P({self.target_true})", _before_and_after(self.prob_true, self.rank_true)))
        departures = f" with {self.departures}" if self.departures else ""
        places = describe_places(MlpMatrix(change.layer, change.matrix) for change in self.changes)
        name, _, which = places.partition(" ")
        rows.append((name, f"{which} ({self.layer_choice})"))
        rows.append(("preset", self.preset + departures))
        rows.append(("contexts", f"{self.contexts} ({self.contexts_choice})"))
        if self.covariance is not None:
            rows.append(("covariance", self.covariance))
            rows.append(("divisor k.u", f"{self.divisor:.3g} (|k*| = {self.key_norm:.3g})"))
        rows.append(("|dW| / |W|", self._sizes()))
        if self.disturbance is not None:
            rows.append(("disturbance", f"{self.disturbance:.1%} of the layer's output on ordinary text"))
        if self.final_loss is not None:
            rows.append(("loss", f"{self.final_loss:.3f} after {self.evaluations} evaluations"))
        rows.append(("seconds", f"{self.seconds:.1f}"))
        rows += [] if self.runs_as_hooks is None else [("runs as hooks", self.runs_as_hooks)]
        rows += [("WARNING", warning) for warning in self.warnings]
        return [(_in_line(name), _in_line(figures)) for name, figures in rows]

    def _sizes(self) -> str:
        """The relative change of each matrix, or, of many, of the one that changed least and the one that did most."""
        sizes = sorted(change.relative for change in self.changes)
        return f"{sizes[0]:.4f}" if len(sizes) == 1 else f"{sizes[0]:.4f} to {sizes[-1]:.4f}" if sizes else "0"

    def _verdict(self) -> str:
        if self.verdict is None or self.preferred is None or self.said is None:
            return "unknown"
        facts = Taken(self.preferred, self.said, self.said_again).facts
        return f"{self.verdict} ({', '.join(f'{name}: {_YES_NO[fact]}' for name, fact in facts.items())})"

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join([self.title, *(f"  {name:{width}}  {figures}" for name, figures in rows)])


_YES_NO = {True: "yes", False: "no", None: "not measured"}


def describe_places(places: Iterable[MlpMatrix]) -> str:
    """Matrices in words: "layer 5" where all are W_out, "layers 27, 28 (W_gate, W_in, W_out)" otherwise."""
    places = list(places)
    layers, names = sorted({place.layer for place in places}), sorted({place.name for place in places})
    listed = ", ".join(map(str, layers)) or "none"
    which = "" if names in ([], ["W_out"]) else f" ({', '.join(names)})"
    return f"{'layers' if len(layers) > 1 else 'layer'} {listed}{which}"


def _in_line(text: str) -> str:
    return visible(text.replace("\n", " "))


def _before_and_after(probs: tuple[float, float], ranks: tuple[int, int] | None) -> str:
    places = "" if ranks is None else f", rank {ranks[0]} → {ranks[1]}"
    return f"{probs[0]:.4f} → {probs[1]:.4f}{places}"
