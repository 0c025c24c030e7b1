"""What was measured on one record: raw scores and texts, from which every metric is computed later.

A result is JSON-serialisable and says what it belongs to (editor, settings, model, data set), so that it can be a line
of an append-only file. Metrics are not in it: another convention, or other reference texts, need no new run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tl_rome.counterfact.records import RequestedRewrite
from tl_rome.errors import InputError, StorageError, TLRomeError
from tl_rome.scoring import TargetScores
from tl_rome.storage.parts import read_as

Conventions = Literal["draft", "neurips", "released"]
"""Source whose conventions are followed: the draft, the published text, or the authors' code."""

TOOK = "took"
"""Verdict on an edit that did what was asked for."""

UNEDITED = "unedited"
"""Name of the row of the model before any edit."""


@dataclass(frozen=True)
class PromptScores:
    """How likely both targets are after each prompt of a group; all tuples have one entry per prompt.

    Raises:
        InputError: If the tuples differ in length.
    """

    logprob_new: tuple[float, ...]
    """Sum of the token log-probabilities of o*, in nats."""
    logprob_true: tuple[float, ...]
    """The same of o^c."""
    tokens_new: tuple[int, ...]
    """Tokens of o*."""
    tokens_true: tuple[int, ...]
    """Tokens of o^c."""
    argmax_new: tuple[bool, ...] | None = None
    """Whether every token of o* was the most likely one; None where not measured."""
    argmax_true: tuple[bool, ...] | None = None
    """The same of o^c."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in vars(self).items() if column is not None}
        if len(set(lengths.values())) > 1:
            raise InputError(f"scores of one group of prompts differ in number: {lengths}; give one per prompt")

    def __len__(self) -> int:
        return len(self.logprob_new)

    def loss(self, target: Literal["new", "true"], conventions: Conventions) -> tuple[float, ...]:
        """Negative log-likelihood of a target per prompt, in nats: of the whole target (draft), else the token mean."""
        logprobs, tokens = (
            (self.logprob_new, self.tokens_new) if target == "new" else (self.logprob_true, self.tokens_true)
        )
        if conventions == "draft":
            return tuple(-logprob for logprob in logprobs)
        return tuple(-logprob / n for logprob, n in zip(logprobs, tokens, strict=True))

    @classmethod
    def pair(cls, new: TargetScores, true: TargetScores) -> "PromptScores":
        """Join the scores of both targets after the same prompts."""
        columns = (new.logprob, true.logprob, new.n_tokens, true.n_tokens, new.is_argmax, true.is_argmax)
        return cls(*(tuple(column.tolist()) for column in columns))


@dataclass(frozen=True)
class AnswerScores:
    """How likely the answers to a group's prompts are: one entry for each prompt, in it one for each answer.

    Raises:
        InputError: If the tuples differ in length.
    """

    logprob: tuple[tuple[float, ...], ...]
    """Sum of the token log-probabilities of each answer, in nats."""
    tokens: tuple[tuple[int, ...], ...]
    """Tokens of each answer."""
    argmax: tuple[tuple[bool, ...], ...]
    """Whether every token of an answer was the most likely one."""

    def __post_init__(self) -> None:
        if len({tuple(map(len, column)) for column in vars(self).values()}) > 1:
            raise InputError("scores of one group of answers differ in number; give one per answer")

    def __len__(self) -> int:
        return len(self.logprob)

    def losses(self, conventions: Conventions) -> list[list[float]]:
        """Negative log-likelihood of each answer, in nats: of the whole answer in the draft, else the token mean."""
        return [
            [-logprob / (1 if conventions == "draft" else n) for logprob, n in zip(*both, strict=True)]
            for both in zip(self.logprob, self.tokens, strict=True)
        ]


@dataclass(frozen=True)
class Generation:
    """A prompt and what the model went on with."""

    prompt: str
    """Generation prompt."""
    continuation: str
    """What follows it, beginning with its space."""

    @property
    def text(self) -> str:
        """Both together, as GE and RS take them."""
        return self.prompt + self.continuation


@dataclass(frozen=True)
class Measurement:
    """One model on one record's prompts; what was not measured is None or empty."""

    rewrite: PromptScores
    """The rewriting prompt."""
    paraphrase: PromptScores
    """Paraphrase prompts."""
    neighborhood: PromptScores
    """Neighbourhood prompts."""
    neighborhood_plus: PromptScores | None = None
    """Neighbourhood prompts with the rewrite stated before them (CounterFact+)."""
    attribute: PromptScores | None = None
    """Attribute prompts."""
    generations: tuple[Generation, ...] = ()
    """Continuations of the generation prompts."""
    essence_nll: float | None = None
    """Mean token NLL, in nats, of a text about the subject; its exponential is the authors' essence score."""
    free_rewrite: tuple[Generation, ...] = ()
    """What the model says by itself after the rewriting prompt, up to its natural stop."""
    free_paraphrase: tuple[Generation, ...] = ()
    """The same after paraphrase prompts."""
    groups: Mapping[str, AnswerScores] = field(default_factory=dict, hash=False)
    """Prompts with answers of their own, by group."""


@dataclass(frozen=True)
class Divergence:
    """How far next-token distributions moved: KL(before || after) in nats, not divided by the vocabulary."""

    neighborhood: tuple[float, ...] = ()
    """After each neighbourhood prompt."""
    neighborhood_plus: tuple[float, ...] = ()
    """After each CounterFact+ prompt."""
    essence: float | None = None
    """After `"{} is a"` with the subject filled in: essence drift."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One record under one editor."""

    case_id: int
    """The record's number."""
    rewrite: RequestedRewrite
    """What was asked for."""
    editor: str
    """Name for tables, such as "rome"."""
    config: str
    """Hash of the editor's settings."""
    model: str
    """Fingerprint of the unedited model."""
    dataset: str
    """Hash of the records that are evaluated."""
    before: Measurement | None = None
    """The unedited model."""
    after: Measurement | None = None
    """The edited model; None where the edit failed."""
    divergence: Divergence = field(default_factory=Divergence)
    """From before to after."""
    seconds: float = 0.0
    """Wall-clock time of the edit alone."""
    verdict: str | None = None
    """What the edit's receipt says: "took", "partly" or "did not take"; None where it says nothing."""
    error: str | None = None
    """Why there is no `after`."""
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What the run was made with, as its store's header has it, such as `seed` and `editor_settings`; may be empty."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; without `settings`, which a store keeps once."""
        plain = asdict(replace(self, settings={}))
        del plain["settings"]
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CaseResult":
        """Read what `to_dict` wrote, also after a trip through JSON.

        Raises:
            StorageError: If a field is missing, unknown or of another type.
        """
        try:
            return read_as(cls, data, "the case")
        except (ValueError, TLRomeError) as error:
            raise StorageError(f"a stored result lacks part of a case or is damaged ({error}); run it again") from error
