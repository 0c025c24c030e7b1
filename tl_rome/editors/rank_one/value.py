"""v*, the value that makes the model say the new object (section 4.3, eq. 13), for one or many requests at once.

v* = v0 + delta replaces the output of W_out at the subject's last token; delta is found by Adam so that the target
becomes likely after the prompt in every context, while what the model says of the subject elsewhere ("{} is a") stays
put. The loss is

    mean over contexts of NLL(target) / tokens  +  kl_factor * KL  +  norm_penalty * ||delta|| / ||v0||^2

The draft preset has the first term alone, summed over tokens, by plain gradient descent. Mass editors (MEMIT, PMET) add
the same delta, but measure it by the norm of the residual stream after the block (`value_site`), which in blocks whose
MLP output joins the stream as it is moves by delta too; PMET has a second offset, on the output of attention.

Nothing below the layer and nothing before the subject's last token depends on delta, and in the edited block nothing
after it does. So each step runs that block on one position, the blocks above on the positions from there on, and
unembeds the scored positions only; the rest comes from one recorded run. Requests share steps but nothing else: the sum
of their losses has one term for each delta, Adam works element by element, and a request that has ended leaves.
"""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm.auto import tqdm

from tl_rome.editors.rank_one.batch import Layout, Rewrite, RewriteBatch
from tl_rome.editors.rank_one.key import Keys, keys_in_contexts
from tl_rome.editors.rank_one.value_settings import HasValueSettings, ValueSettings
from tl_rome.editors.suffix import Runner, suffix_runner
from tl_rome.errors import NumericsError
from tl_rome.facts import Fact
from tl_rome.running.blocks import frozen
from tl_rome.running.forward import final_logits
from tl_rome.running.matrices import key_hook
from tl_rome.running.memory import give_back
from tl_rome.running.replay import Replay
from tl_rome.sites import HookedModel, Site, check_layer

PARTS: tuple[str, ...] = ("loss", "nll", "kl", "penalty", "target_prob", "missed")
"""What is noted of an evaluation; the last, where a rule asks for it: target tokens that are not the most likely."""
_PADDED = 1.25
"""Most positions that a group of requests is run on, over those that it needs."""
_UNWRITTEN = math.log(2)
"""NLL in nats above which a target is less likely than not, see `RomeConfig.extra_evaluations`."""
_RELAXED = 0.1
"""PMET's factor on the NLL while every target token is the most likely one."""
_SMALL_KL = 0.01
"""PMET ends there if the KL term is at most this."""
_ENOUGH = 2
"""Evaluations in which every target token is the most likely one, after which MPES ends (arXiv 2502.01636)."""

ToWrite = Fact | tuple[Fact, ...]
"""A fact, or several of one subject that get one delta: their losses are averaged over all rows."""


@dataclass(frozen=True, eq=False)
class OptimisedValue:
    """The outcome of one optimisation."""

    value: Float[Tensor, " d_model"]
    """v*, what W_out should give for k*, bias included."""
    initial: Float[Tensor, " d_model"]
    """v0, what it gave for the prompt without a prefix."""
    losses: tuple[dict[str, float], ...]
    """Per evaluation: loss, nll, kl, penalty (nats), and the mean probability of the target over contexts."""
    keys: Keys = field(default_factory=dict)
    """The subject's keys in the same contexts, "prompt" and "contexts", seen in the recorded run; in float64."""
    output: Float[Tensor, " d_model"] | None = None
    """What W_out gave for the prompt without a prefix, where v0 is something else."""

    @property
    def delta(self) -> Float[Tensor, " d_model"]:
        """v* - v0."""
        return self.value - self.initial


def optimise_value(
    model: HookedModel,
    layer: int,
    fact: Fact,
    contexts: Sequence[str],
    config: HasValueSettings,
    *,
    progress: bool = False,
) -> OptimisedValue:
    """Find v* for a fact.

    Args:
        model: Left as found.
        layer: Layer whose W_out is to be edited.
        fact: Prompt, subject and the new target.
        contexts: Prefixes, the empty one first.
        config: Such as a preset.
        progress: Whether to show a progress bar over evaluations.

    Raises:
        SubjectError: If the subject does not lie on whole tokens in some context.
        NumericsError: If the loss is not finite.
    """
    return optimise_values(model, layer, [fact], contexts, config, progress=progress)[0]


def optimise_values(
    model: HookedModel,
    layer: int,
    facts: Sequence[ToWrite],
    contexts: Sequence[str],
    config: HasValueSettings,
    *,
    max_batch_tokens: int = 2048,
    progress: bool = False,
) -> list[OptimisedValue]:
    """Find v* for many facts, each as `optimise_value` does alone, in batches.

    Args:
        model: Left as found.
        layer: Layer whose W_out is to be edited.
        facts: Prompts, subjects and new targets; several in a tuple get one value.
        contexts: Prefixes, the empty one first.
        config: Such as a preset.
        max_batch_tokens: Bound on the rows times positions that are run at once, which bounds memory; one fact alone
            may exceed it.
        progress: Whether to show a progress bar over evaluations, one for each batch.

    Returns:
        One outcome per fact or tuple, in order; the first fact of a tuple gives v0 and the keys.

    Raises:
        InputError: If the layer is out of range, there are no contexts, or a fact has no target.
        SubjectError: If a subject does not lie on whole tokens in some context.
        NumericsError: If a loss is not finite.
    """
    check_layer(model, layer)
    settings = config.value_settings
    rewrites = [rewrite_of(model, fact, contexts, settings) for fact in facts]
    found: dict[int, OptimisedValue] = {}
    place, names = key_hook(layer), _read_at(settings, layer)
    with frozen(model), torch.enable_grad():
        for chunk in _chunks(rewrites, max_batch_tokens):
            batch = RewriteBatch.make(model, [rewrites[index] for index in chunk])
            options = {"lengths": batch.lengths, "start": batch.start, "span": 1, "padding": batch.padding}
            options["attention"] = settings.value_site == "w_out+w_o"
            with suffix_runner(model, batch.tokens, layer, **options, names=[place, *names]) as runner:
                places = torch.arange(len(contexts), device=batch.tokens.device)
                keys = runner.found.pop(place)[batch.layout.first[:, None] + places, batch.start]
                first = [runner.found.pop(name)[batch.layout.first, batch.start] for name in names]
                outputs = runner.outputs[batch.layout.first, 0].float()
                initial = torch.stack([each.float() for each in _bases(settings, outputs, first)], 1)
                values = _optimise(_Loss(model, runner, batch.layout, settings, initial), settings, progress)
            for index, value, rows, output in zip(chunk, values, keys, outputs, strict=True):
                found[index] = replace(value, keys=keys_in_contexts(rows), output=output)
            del batch, runner, values
            give_back()
    return [found[index] for index in range(len(facts))]


def rewrite_of(model: HookedModel, facts: ToWrite, contexts: Sequence[str], settings: ValueSettings) -> Rewrite:
    """What is optimised for a fact, or for several that get one value.

    Raises:
        InputError: If there are no contexts, a fact has no target, or a prompt is longer than the context.
        SubjectError: If a subject does not lie on whole tokens in some context.
    """
    group = (facts,) if isinstance(facts, Fact) else facts
    template = settings.kl_template if settings.kl_factor else group[0].template
    return Rewrite.make(model, group, contexts, template)


def _read_at(settings: ValueSettings, layer: int) -> list[str]:
    """Hook points at which v0 is read, beside W_out's output."""
    sites = {"w_out": [], "resid_post": ["resid_post"], "w_out+w_o": ["attn_out"]}[settings.value_site]
    return [Site(site, layer).hook for site in sites]


def _bases(settings: ValueSettings, outputs: Tensor, read: list[Tensor]) -> list[Tensor]:
    """v0 of each offset, the first one being that of W_out's output or of the stream."""
    return read if settings.value_site == "resid_post" else [outputs, *read]


def _optimise(loss_of: "_Loss", config: ValueSettings, progress: bool) -> list[OptimisedValue]:
    delta = torch.zeros_like(loss_of.initial, requires_grad=True)
    optimiser = _optimiser(delta, config)
    found: dict[int, OptimisedValue] = {}
    losses: list[list[dict[str, float]]] = [[] for _ in delta]
    predicted = [0] * len(delta)
    most = config.max_evaluations + config.extra_evaluations
    limits = [config.max_evaluations] * len(delta)

    def evaluate() -> tuple[Tensor, Tensor]:
        now = delta.detach().requires_grad_()  # the same memory; a leaf of one evaluation can be recorded
        total, figures = loss_of(now)
        return torch.autograd.grad(total, now)[0], figures

    evaluated = Replay(evaluate, delta.is_cuda)
    for step in tqdm(range(most), desc="optimise v*", unit="step", disable=not progress):
        delta.grad, found_parts = evaluated()
        parts = [dict(zip(PARTS, row, strict=False)) for row in found_parts.tolist()]  # all that a step waits for
        for request, figures in zip(loss_of.left, parts, strict=True):
            losses[request].append(figures)
            predicted[request] += (hit := bool(figures.pop("missed", 1) == 0))
            if step + 1 == config.max_evaluations and figures["nll"] > _UNWRITTEN:
                limits[request] = most
            relaxed = config.relax_when_predicted and hit and figures["kl"] <= _SMALL_KL
            enough = relaxed or (config.early_stop and predicted[request] == _ENOUGH)
            if enough or figures["loss"] < config.stop_loss or step + 1 == limits[request]:
                value, initial = (loss_of.initial + delta).detach()[request, 0], loss_of.initial[request, 0]
                found[request] = OptimisedValue(value, initial, tuple(losses[request]))
        loss = sum(figures["loss"] for figures in parts)
        if not math.isfinite(loss):
            raise NumericsError(f"the loss of v* is {loss} at step {step}; look for NaN or inf weights")
        if len(found) == len(delta):
            break
        optimiser.step()
        if loss_of.drop(found):
            evaluated.forget()
        if config.clamp is not None:
            with torch.no_grad():
                limit = config.clamp * loss_of.initial.norm(dim=2) / delta.norm(dim=2)
                delta.mul_(limit.clamp(max=1.0)[..., None])
    return [found[request] for request in range(len(delta))]


def _optimiser(delta: Float[Tensor, "requests offsets d_model"], config: ValueSettings) -> torch.optim.Optimizer:
    if config.optimiser == "gradient_descent":
        return torch.optim.SGD([delta], lr=config.learning_rate)
    return torch.optim.Adam([delta], lr=config.learning_rate, weight_decay=config.weight_decay)


def _chunks(rewrites: Sequence[Rewrite], max_batch_tokens: int) -> Iterator[list[int]]:
    """Group rewrites, those with few positions first, so that rows times positions stay within the bound.

    All rows of a group are run on as many positions as the longest has, which is to be little more than they need.
    """
    chunk: list[int] = []
    rows = needed = 0
    for index in sorted(range(len(rewrites)), key=lambda index: rewrites[index].positions):
        rewrite = rewrites[index]
        tokens, own = (rows + len(rewrite.rows)) * rewrite.positions, len(rewrite.rows) * rewrite.positions
        if chunk and (tokens > max_batch_tokens or tokens > _PADDED * (needed + own)):
            yield chunk
            chunk, rows, needed = [], 0, 0
        chunk.append(index)
        rows, needed = rows + len(rewrite.rows), needed + own
    if chunk:
        yield chunk


class _Loss:
    """The losses of v* as a function of delta, with everything that does not depend on delta computed once."""

    def __init__(
        self,
        model: HookedModel,
        runner: Runner,
        layout: Layout,
        config: ValueSettings,
        initial: Float[Tensor, "requests offsets d_model"],
    ) -> None:
        self.model, self.config, self.layout, self._runner, self.initial = model, config, layout, runner, initial
        self.left = list(range(len(self.initial)))
        """Requests that have not ended."""
        self._kept: Tensor | slice = slice(None)
        self._usual: Tensor | None = None

    def __call__(
        self, delta: Float[Tensor, "requests offsets d_model"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "left parts"]]:
        """Sum of the losses of the requests that are left, differentiable in delta, and each one's `PARTS`."""
        layout, config = self.layout, self.config
        delta, initial = delta[self._kept], self.initial[self._kept]
        resid = self._runner(*delta[layout.owner].unsqueeze(2).unbind(1))
        read = torch.cat([resid[layout.row, layout.position], resid[layout.essence, 0]])
        logprobs, essence = final_logits(self.model, read).float().log_softmax(-1).split([len(layout.row), len(delta)])
        if self._usual is None:
            self._usual = essence.detach().clone()
        share = torch.ones_like(layout.share) if config.sum_token_nll else layout.share
        scored = -logprobs.gather(1, layout.token[:, None])[:, 0] * share
        nll_each = scored.new_zeros(len(layout.owner)).index_add(0, layout.row, scored)
        nll = self._mean(nll_each)
        kl = config.kl_factor * kl_div(self._usual, essence, log_target=True, reduction="none").sum(1)
        penalty = (config.norm_penalty * delta.norm(dim=2) / initial.norm(dim=2) ** 2).sum(1)
        factor: Tensor | float = config.nll_factor
        missed = []
        if config.needs_predictions:
            other = (logprobs.argmax(1) != layout.token).to(nll.dtype)
            missed.append(torch.zeros_like(nll).index_add(0, layout.owner[layout.row], other))
            if config.relax_when_predicted:
                factor = factor * torch.where(missed[0] == 0, _RELAXED, 1.0)
        loss = factor * nll + kl + penalty
        parts = [loss, nll, kl, penalty, self._mean((-nll_each).exp()), *missed]
        return loss.sum(), torch.stack(parts, dim=1).detach()

    def _mean(self, each: Float[Tensor, " rows"]) -> Float[Tensor, " requests"]:
        """Mean over each request's prompts."""
        rows = self.layout.prompt
        total, count = each.new_zeros(2, len(self.left)).index_add(
            1, self.layout.owner[rows], torch.stack([each[rows], torch.ones_like(each[rows])])
        )
        return total / count

    def drop(self, ended: Container[int]) -> bool:
        """Go on without some requests; whether any of them was still there."""
        places = [place for place, request in enumerate(self.left) if request not in ended]
        if len(places) == len(self.left):
            return False
        assert self._usual is not None
        kept = torch.tensor(places, device=self.initial.device)
        self.layout, rows = self.layout.keep(kept)
        self.left, self._usual = [self.left[place] for place in places], self._usual[kept]
        self._kept = torch.tensor(self.left, device=self.initial.device)
        self._runner.keep(rows)
        return True
