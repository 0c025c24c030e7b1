"""A prompt on its way through a trace: its two runs, what is scored in them, and the result."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching.config import Method, TraceConfig, described
from tl_rome.patching.metrics import Metric, per_row
from tl_rome.patching.patch import Patch
from tl_rome.patching.result import NOTHING, TraceResult
from tl_rome.patching.runs import Recorded, Runs
from tl_rome.sites import HookedModel
from tl_rome.tokens import Prompt, encode_fact, encode_target, token_labels

_log = logging.getLogger(__name__)


def prepare(model: HookedModel, fact: Fact, config: TraceConfig, generator: torch.Generator | None) -> Runs:
    """Tokenise a fact, and corrupt its subject.

    Raises:
        InputError: If the whole target is to be scored and there is none, and as `encode_fact` and `corrupt`.
    """
    prompt = encode_fact(model, fact)
    target = None if fact.target is None else encode_target(model, fact.target, prompt.text, fact.joiner)
    if config.whole_target and target is None:
        raise InputError(f"{fact} has no target to score the whole of; give it one")
    if target is not None and not _scores_all(model, prompt, target, config.whole_target):
        target = target[:1]
    assert config.corruption is not None
    return Runs(model, prompt, config.corruption, generator, target, config.direction == "noising")


def _scores_all(model: HookedModel, prompt: Prompt, target: Int[Tensor, " target"], whole: bool | None) -> bool:
    """Whether to score all tokens of a target; warns of a first token that says nothing about the others."""
    first = token_labels(model, target[:1])[0]
    if whole is False and not first.strip() and len(target) > 1:
        _log.warning(
            "%r: the answer's first token is %r, as for many others; give whole_target=True to score all of it",
            prompt.text,
            first,
        )
    return not first.strip() if whole is None else whole


@dataclass(frozen=True, eq=False)
class TracedPrompt:
    """A prompt whose clean and corrupted runs are recorded, and whose score is settled; `record` makes it."""

    runs: Runs
    """The prompt and its corruption."""
    recorded: Recorded
    """What the runs held."""
    predicted: Int[Tensor, "1"]
    """The token that the clean model thinks most likely."""
    answer: Int[Tensor, " scored"]
    """Tokens of the answer: the target's, or `predicted`."""
    metrics: tuple[Metric, ...]
    """Each gives one score per row."""

    @classmethod
    def record(
        cls, runs: Runs, configs: Sequence[TraceConfig], names: Iterable[str], *, attended: bool
    ) -> "TracedPrompt":
        """Run clean and corrupted, and settle what is scored.

        Args:
            runs: The prompt and its corruption.
            configs: Settings, of which the metric is used; one for each metric.
            names: Hook points to keep.
            attended: Whether to keep attention keys and values too.

        Raises:
            InputError: If the metric gives neither one number per row nor one in all.
            NumericsError: If the clean run's logits are not finite.
        """
        recorded = runs.record(names, attended=attended)
        predicted = recorded.clean_logits[0, 0].argmax().cpu()[None]
        answer = predicted if runs.target is None else runs.target
        metrics = tuple(per_row(config.metric_for(answer), recorded.clean_logits) for config in configs)
        return cls(runs, recorded, predicted, answer, metrics)

    @property
    def clean_scores(self) -> list[float]:
        """Score of the clean run by each metric."""
        return [float(metric(self.recorded.clean_logits)) for metric in self.metrics]

    @property
    def corrupted_scores(self) -> list[float]:
        """Mean score of the corrupted runs by each metric."""
        return [metric(self.recorded.corrupted_logits).cpu().double().mean().item() for metric in self.metrics]

    @property
    def base_scores(self) -> list[float]:
        """Score of the run that is patched, nothing patched, by each metric."""
        return self.clean_scores if self.runs.noising else self.corrupted_scores

    def base_table(self, cells: int) -> Float[Tensor, "metrics cell pos"]:
        """What every cell scores that is not traced."""
        shape = cells, len(self.runs.prompt.tokens)
        return torch.stack([torch.full(shape, score, dtype=torch.float64) for score in self.base_scores])

    def result(
        self,
        scores: Float[Tensor, "cell pos"],
        patch: Patch,
        config: TraceConfig,
        *,
        place: int = 0,
        method: Method | Literal["attribution"],
        model: str,
    ) -> TraceResult:
        """Put scores together with what they are of, and warn of a trace that explains nothing.

        Args:
            scores: Of `patch.cells`.
            patch: What was patched.
            config: Settings, with the metric that these scores are of.
            place: Of that metric among `metrics`.
            method: How the scores were computed.
            model: The model's fingerprint.
        """
        prompt, tokenizer = self.runs.prompt, self.runs.model.tokenizer
        labels = token_labels(self.runs.model, torch.cat([self.answer[:1], self.predicted]))
        result = TraceResult(
            scores=patch.by_layer(scores),
            clean_score=self.clean_scores[place],
            corrupted_score=self.corrupted_scores[place],
            component=patch.component,
            window=config.width(patch.component),
            clipping=config.clipping,
            prompt=prompt.text,
            answer=tokenizer.decode(self.answer.tolist()) if len(self.answer) > 1 else labels[0],
            predicted=labels[1],
            labels=prompt.labels,
            subject=prompt.subject,
            prepend_bos=prompt.prepend_bos,
            samples=self.runs.samples,
            corruption=described(config.corruption),
            method=method,
            model=model,
            metric=_label(config.metric, self.runs.model),
            direction=config.direction,
            severed=config.sever,
            units=patch.labels,
        )
        surprised = place == 0 and bool(self.answer[0] != self.predicted[0])
        _warn(result, surprised=surprised, own_metric=callable(config.metric))
        return result


def _label(metric: Metric | str, model: HookedModel) -> str:
    """What a metric's scores are called: what its own `label(model)` says, if it has one."""
    if isinstance(metric, str):
        return metric
    label = getattr(metric, "label", None)
    return str(label(model)) if callable(label) else described(metric)


def _warn(result: TraceResult, *, surprised: bool, own_metric: bool) -> None:
    prompt = result.prompt
    if result.effects.abs().max() < NOTHING * abs(result.base_score):
        _log.warning("%r: nothing changed anywhere: this model shows %r but does not use it", prompt, result.component)
    if surprised:
        _log.warning("%r: the model's first choice is %r, not the traced %r", prompt, result.predicted, result.answer)
    if result.total_effect <= 0 and not own_metric:
        _log.warning(
            "%r: corrupting the subject did not lower the score of %r: %.3g clean, %.3g corrupted; the trace has "
            "nothing to explain",
            prompt,
            result.answer,
            result.clean_score,
            result.corrupted_score,
        )
