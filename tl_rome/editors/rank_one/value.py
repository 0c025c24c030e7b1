"""v*, the value that makes the model say the new object (section 4.3, eq. 13), for one or many requests at once.

v* = v0 + delta replaces the output of W_out at the subject's last token; delta is found by Adam so that the target
becomes likely after the prompt in every context, while what the model says of the subject elsewhere ("{} is a") stays
put. The loss is

    mean over contexts of NLL(target) / tokens  +  kl_factor * KL  +  norm_penalty * ||delta|| / ||v0||^2

The draft preset has the first term alone, summed over tokens, by plain gradient descent.

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
from tl_rome.editors.rank_one.presets import RomeConfig
from tl_rome.editors.suffix import Runner, suffix_runner
from tl_rome.errors import NumericsError
from tl_rome.facts import Fact
from tl_rome.running.blocks import frozen
from tl_rome.running.forward import final_logits
from tl_rome.running.matrices import key_hook
from tl_rome.running.replay import Replay
from tl_rome.sites import HookedModel, check_layer

PARTS: tuple[str, ...] = ("loss", "nll", "kl", "penalty", "target_prob")
"""What is noted of an evaluation."""
_PADDED = 1.25
"""Most positions that a group of requests is run on, over those that it needs."""
_UNWRITTEN = math.log(2)
"""NLL in nats above which a target is less likely than not, see `RomeConfig.extra_evaluations`."""


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


def optimise_value(
    model: HookedModel, layer: int, fact: Fact, contexts: Sequence[str], config: RomeConfig, *, progress: bool = False
) -> OptimisedValue:
    """Find v* for a fact.

    Args:
        model: Left as found.
        layer: Layer whose W_out is to be edited.
        fact: Prompt, subject and the new target.
        contexts: Prefixes, the empty one first.
        config: Preset.
        progress: Whether to show a progress bar over evaluations.

    Raises:
        SubjectError: If the subject does not lie on whole tokens in some context.
        NumericsError: If the loss is not finite.
    """
    return optimise_values(model, layer, [fact], contexts, config, progress=progress)[0]


def optimise_values(
    model: HookedModel,
    layer: int,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    config: RomeConfig,
    *,
    max_batch_tokens: int = 2048,
    progress: bool = False,
) -> list[OptimisedValue]:
    """Find v* for many facts, each as `optimise_value` does alone, in batches.

    Args:
        model: Left as found.
        layer: Layer whose W_out is to be edited.
        facts: Prompts, subjects and new targets.
        contexts: Prefixes, the empty one first.
        config: Preset.
        max_batch_tokens: Bound on the rows times positions that are run at once, which bounds memory; one fact alone
            may exceed it.
        progress: Whether to show a progress bar over evaluations, one for each batch.

    Returns:
        One outcome per fact, in order.

    Raises:
        InputError: If the layer is out of range, there are no contexts, or a fact has no target.
        SubjectError: If a subject does not lie on whole tokens in some context.
        NumericsError: If a loss is not finite.
    """
    check_layer(model, layer)
    rewrites = [
        Rewrite.make(model, fact, contexts, config.kl_template if config.kl_factor else fact.template) for fact in facts
    ]
    found: dict[int, OptimisedValue] = {}
    place = key_hook(layer)
    with frozen(model), torch.enable_grad():
        for chunk in _chunks(rewrites, max_batch_tokens):
            batch = RewriteBatch.make(model, [rewrites[index] for index in chunk])
            options = {"lengths": batch.lengths, "start": batch.start, "span": 1, "padding": batch.padding}
            with suffix_runner(model, batch.tokens, layer, **options, names=[place]) as runner:
                keys = runner.found.pop(place)[batch.layout.prompt, batch.start].unflatten(0, (len(chunk), -1))
                values = _optimise(_Loss(model, runner, batch.layout, config), config, progress)
            for index, value, rows in zip(chunk, values, keys, strict=True):
                found[index] = replace(value, keys=keys_in_contexts(rows))
    return [found[index] for index in range(len(facts))]


def _optimise(loss_of: "_Loss", config: RomeConfig, progress: bool) -> list[OptimisedValue]:
    delta = torch.zeros_like(loss_of.initial, requires_grad=True)
    optimiser = _optimiser(delta, config)
    found: dict[int, OptimisedValue] = {}
    losses: list[list[dict[str, float]]] = [[] for _ in delta]
    most = config.max_evaluations + config.extra_evaluations
    limits = [config.max_evaluations] * len(delta)

    def evaluate() -> tuple[Tensor, Tensor]:
        now = delta.detach().requires_grad_()  # the same memory; a leaf of one evaluation can be recorded
        total, figures = loss_of(now)
        return torch.autograd.grad(total, now)[0], figures

    evaluated = Replay(evaluate, delta.is_cuda)
    for step in tqdm(range(most), desc="optimise v*", unit="step", disable=not progress):
        delta.grad, found_parts = evaluated()
        parts = [dict(zip(PARTS, row, strict=True)) for row in found_parts.tolist()]  # all that a step waits for
        for request, figures in zip(loss_of.left, parts, strict=True):
            losses[request].append(figures)
            if step + 1 == config.max_evaluations and figures["nll"] > _UNWRITTEN:
                limits[request] = most
            if figures["loss"] < config.stop_loss or step + 1 == limits[request]:
                value, initial = (loss_of.initial + delta).detach()[request], loss_of.initial[request]
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
                limit = config.clamp * loss_of.initial.norm(dim=1) / delta.norm(dim=1)
                delta.mul_(limit.clamp(max=1.0)[:, None])
    return [found[request] for request in range(len(delta))]


def _optimiser(delta: Float[Tensor, "requests d_model"], config: RomeConfig) -> torch.optim.Optimizer:
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

    def __init__(self, model: HookedModel, runner: Runner, layout: Layout, config: RomeConfig) -> None:
        self.model, self.config, self.layout, self._runner = model, config, layout, runner
        self.initial = runner.outputs[layout.first, 0].float()
        self.left = list(range(len(self.initial)))
        """Requests that have not ended."""
        self._kept: Tensor | slice = slice(None)
        self._usual: Tensor | None = None

    def __call__(
        self, delta: Float[Tensor, "requests d_model"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "left parts"]]:
        """Sum of the losses of the requests that are left, differentiable in delta, and each one's `PARTS`."""
        layout, config = self.layout, self.config
        delta, initial = delta[self._kept], self.initial[self._kept]
        resid = self._runner(delta[layout.owner][:, None])
        read = torch.cat([resid[layout.row, layout.position], resid[layout.essence, 0]])
        logprobs, essence = final_logits(self.model, read).float().log_softmax(-1).split([len(layout.row), len(delta)])
        if self._usual is None:
            self._usual = essence.detach().clone()
        share = torch.ones_like(layout.share) if config.sum_token_nll else layout.share
        scored = -logprobs.gather(1, layout.token[:, None])[:, 0] * share
        nll_each = scored.new_zeros(len(layout.owner)).index_add(0, layout.row, scored)
        nll = self._mean(nll_each)
        kl = config.kl_factor * kl_div(self._usual, essence, log_target=True, reduction="none").sum(1)
        penalty = config.norm_penalty * delta.norm(dim=1) / initial.norm(dim=1) ** 2
        loss = nll + kl + penalty
        parts = [loss, nll, kl, penalty, self._mean((-nll_each).exp())]
        return loss.sum(), torch.stack(parts, dim=1).detach()

    def _mean(self, each: Float[Tensor, " rows"]) -> Float[Tensor, " requests"]:
        """Mean over each request's contexts."""
        rows = self.layout.prompt
        total = each.new_zeros(len(self.left)).index_add(0, self.layout.owner[rows], each[rows])
        return total * len(self.left) / len(rows)

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
