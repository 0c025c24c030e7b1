"""Causal tracing (section 3): which states, restored to their clean values, bring the right answer back.

The model runs once on the clean prompt, and once per noise sample with the subject's embeddings corrupted. Then single
states h_t^(l), or runs of ten MLP or attention outputs, are put back to what they were in the clean run, one (layer,
token) cell at a time, and the probability of the answer is read. Cells with a high score are decisive.

The same experiment runs on any hook point, in either direction, with any metric of the logits.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.patching.config import Direction, TraceConfig, described
from tl_rome.patching.corruption import Corruption, GaussianNoise, noise_scale
from tl_rome.patching.incremental import needed_names, trace_sweep
from tl_rome.patching.metrics import Metric
from tl_rome.patching.patch import Patch, Units, split_units
from tl_rome.patching.plain import trace_plain
from tl_rome.patching.result import TraceResult
from tl_rome.patching.runs import Recorded, Runs
from tl_rome.patching.windows import Clipping
from tl_rome.sites import HookedModel, is_hooked_transformer
from tl_rome.storage.files import fingerprint
from tl_rome.tokens import encode_fact, encode_target, token_labels

_log = logging.getLogger(__name__)
_NOTHING = 1e-6
"""Relative change of a score that rounding makes by itself."""


def causal_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    *,
    generator: torch.Generator,
    window: int | None = None,
    clipping: Clipping = "released",
    corruption: Corruption | None = None,
    metric: str | Metric = "prob",
    direction: Direction = "denoising",
    sever: str | None = None,
    units: Units = None,
    whole_target: bool = False,
    method: str = "sweep",
    max_batch_tokens: int = 4096,
    progress: bool = True,
) -> TraceResult:
    """Trace where a model keeps a fact.

    Args:
        model: A HookedTransformer or TransformerBridge; left as found.
        fact: Prompt and subject. If it has a target, the target's first token is scored, otherwise the clean model's
            most likely token, as in the authors' code.
        component: "resid_post" for hidden states, "mlp_out", "attn_out", or any other hook point of the blocks, without
            its `hook_` or with its module, as in "resid_mid", "attn.hook_z", "attn.hook_pattern" or "mlp.hook_post". A
            full name, as in "blocks.5.attn.hook_z" or "hook_embed", is patched alone.
        generator: Source of the noise; the same seed gives the same noise for every component.
        window: Layers patched together; by default 1 for hidden states and 10 for everything else, as in the paper.
        clipping: Which layers a window covers, see `layer_window`.
        corruption: What is done to the subject's embeddings; by default ten draws of `GaussianNoise` at `noise_scale`.
        metric: "prob" (in [0, 1]), "logprob" (nats), or a function of logits, see `metrics`.
        direction: "denoising" restores clean states in corrupted runs; "noising" puts corrupted states into a clean
            run.
        sever: "mlp" or "attn": also keep all those outputs at the patched position as they are in the run that is
            patched, as in the authors' `trace_with_repatch`. What the patch does then does not pass through them.
        units: Patch parts of each state, one at a time: "heads", groups of so many features, or lists of indices. The
            scores then have a third axis.
        whole_target: Whether to score all tokens of the fact's target, each at its own position, not only the first.
        method: "sweep" computes nothing twice; "plain" runs the whole model for each cell. The numbers are the same. A
            hook point or model that the sweep does not cover goes the plain way, which is logged and recorded.
        max_batch_tokens: Bound on rows x positions run at once, which bounds memory.
        progress: Whether to show a progress bar over positions.

    Returns:
        Scores of shape [layer, pos] with what is needed to read and to plot them.

    Raises:
        InputError: For an unknown hook point or choice, a window below 1, a subject or prompt that cannot be tokenised
            as asked, or a corruption that returns another shape.
        NumericsError: If the model's outputs are not finite.
        UnsupportedModelError: If the hook point exists, but does not fire.
    """
    config = TraceConfig(
        window=window,
        clipping=clipping,
        corruption=corruption,
        metric=metric,
        direction=direction,
        sever=sever,
        units=units,
        whole_target=whole_target,
        method=method,
        max_batch_tokens=max_batch_tokens,
    )
    return trace_together(model, [fact], component, config, generators=[generator], progress=progress)[0]


@torch.no_grad()
def trace_together(
    model: HookedModel,
    facts: Sequence[Fact],
    component: str,
    config: TraceConfig,
    *,
    generators: Sequence[torch.Generator],
    positions: Iterable[int] | None = None,
    progress: bool = True,
) -> list[TraceResult]:
    """Trace several facts in one go, which keeps a large device busy; the numbers are those of one by one.

    Args:
        model: Left as found.
        facts: Prompts and subjects.
        component: As in `causal_trace`.
        config: Settings.
        generators: Source of each fact's noise.
        positions: Positions to trace, by default all; others keep the score of the run that is patched.
        progress: Whether to show a progress bar over positions.

    Raises:
        TLRomeError: As `causal_trace`.
    """
    is_hooked_transformer(model)
    identity = fingerprint(model)
    config = replace(config, corruption=default_corruption(model, config))
    patch = Patch.make(model, component, config.width(component), config.clipping, config.sever)
    cases = [Case.make(model, fact, config, rng) for fact, rng in zip(facts, generators, strict=True)]
    labels: tuple[str, ...] = ()
    sweep = config.method == "sweep" and patch.in_blocks
    if config.method == "sweep" and not sweep:
        _log.info("%s lies outside the blocks; tracing it cell by cell", component)
    columns = max(len(case.runs.prompt.tokens) for case in cases)
    with tqdm(total=columns, desc=f"trace {component}", unit="pos", disable=not progress) as bar:
        scores: list[Tensor] = []
        if sweep:
            try:
                for case in cases:
                    case.record(needed_names(model, patch), attended=True)
                patch, labels = split(patch, cases, config.units)
                scores = trace_sweep(
                    [case.runs for case in cases],
                    [case.recorded for case in cases],
                    patch,
                    [case.metric for case in cases],
                    max_batch_tokens=config.max_batch_tokens,
                    tick=bar.update,
                    positions=positions,
                )
            except UnsupportedModelError as error:
                _log.warning("%s; tracing cell by cell instead", error)
                sweep = False
        if not sweep:
            bar.reset(sum(len(case.runs.prompt.tokens) for case in cases))
            for case in cases:
                case.record(patch.names, attended=False)
            patch, labels = split(patch, cases, config.units)
            bound = config.max_batch_tokens
            scores = [
                trace_plain(c.runs, c.recorded, patch, c.metric, max_batch_tokens=bound, tick=bar.update) for c in cases
            ]
    settings = {"component": component, "method": "sweep" if sweep else "plain", "units": labels, "model": identity}
    return [case.result(by_layer(table, labels), config, settings) for case, table in zip(cases, scores, strict=True)]


def default_corruption(model: HookedModel, config: TraceConfig) -> Corruption:
    """The settings' corruption, or noise at the model's own scale."""
    return config.corruption or GaussianNoise(noise_scale(model))


@dataclass
class Case:
    """One fact on its way through a trace."""

    runs: Runs
    config: TraceConfig
    target: Tensor | None
    """Tokens of the answer; None until the clean model has given it."""

    @classmethod
    def make(cls, model: HookedModel, fact: Fact, config: TraceConfig, generator: torch.Generator) -> "Case":
        """Tokenise a fact, and corrupt its subject.

        Raises:
            InputError: If the whole target is to be scored and there is none, and as `encode_fact`.
        """
        prompt = encode_fact(model, fact)
        target = None if fact.target is None else encode_target(model, fact.target, prompt.text)
        if config.whole_target and target is None:
            raise InputError(f"{fact} has no target to score the whole of; give it one")
        target = target if config.whole_target or target is None else target[:1]
        more = torch.zeros(0, dtype=torch.long) if target is None else target[:-1]
        assert config.corruption is not None
        runs = Runs(model, prompt, config.corruption, generator, more, config.direction == "noising")
        return cls(runs, config, target)

    def record(self, names: Iterable[str], *, attended: bool) -> None:
        """Run clean and corrupted, and settle what is scored."""
        self.recorded: Recorded = self.runs.record(names, attended=attended)
        self.predicted = self.recorded.clean_logits[0, -self.runs.scored].argmax().cpu()[None]
        self.answer = self.predicted if self.target is None else self.target
        self.metric = self.config.metric_for(self.answer)

    def result(self, scores: Float[Tensor, "layer pos *unit"], config: TraceConfig, settings: dict) -> TraceResult:
        """Put scores together with what they are of, and warn of a trace that explains nothing."""
        prompt, model = self.runs.prompt, self.runs.model
        result = TraceResult(
            scores=scores,
            clean_score=self.metric(self.recorded.clean_logits).item(),
            corrupted_score=self.metric(self.recorded.corrupted_logits).cpu().double().mean().item(),
            window=config.width(settings["component"]),
            clipping=config.clipping,
            prompt=prompt.text,
            answer=model.tokenizer.decode(self.answer.tolist())
            if len(self.answer) > 1
            else token_labels(model, self.answer)[0],
            predicted=token_labels(model, self.predicted)[0],
            labels=prompt.labels,
            subject=prompt.subject,
            prepend_bos=prompt.prepend_bos,
            samples=self.runs.samples,
            corruption=described(config.corruption),
            metric=config.metric if isinstance(config.metric, str) else described(config.metric),
            direction=config.direction,
            severed=config.sever,
            **settings,
        )
        if result.effects.abs().max() < _NOTHING * abs(result.base_score):
            _log.warning("nothing changed anywhere: this model shows %r but does not use it", result.component)
        if bool(self.answer[0] != self.predicted[0]):
            _log.warning("the model's first choice is %r, not the traced answer %r", result.predicted, result.answer)
        if result.total_effect <= 0 and isinstance(config.metric, str):
            _log.warning(
                "corrupting the subject did not lower the score of %r: %.3g clean, %.3g corrupted; the trace has "
                "nothing to explain",
                result.answer,
                result.clean_score,
                result.corrupted_score,
            )
        return result


def split(patch: Patch, cases: Sequence[Case], units: Units) -> tuple[Patch, tuple[str, ...]]:
    """The patch with its units, once the hook point's shape is known.

    Raises:
        InputError: If the hook point has no positions, or its features cannot be split so.
    """
    name = next(iter(patch.points.values()))
    shapes = [case.recorded.found[name].shape for case in cases]
    states = [patch.states(case.recorded.found[name]) for case in cases]
    for shape, state, case in zip(shapes, states, cases, strict=True):
        if state.shape[:2] != (1 + case.runs.samples, len(case.runs.tokens)):
            raise InputError(f"{patch.component!r} has shape {tuple(shape)}, without positions to patch")
    indices, labels = split_units(units, states[0].shape[2:], patch.component)
    return replace(patch, units=indices), labels


def by_layer(scores: Float[Tensor, "cell pos"], units: tuple[str, ...]) -> Float[Tensor, "layer pos *unit"]:
    """Scores of `Patch.cells`, laid out as results are."""
    return scores.unflatten(0, (-1, len(units))).movedim(1, 2) if units else scores
