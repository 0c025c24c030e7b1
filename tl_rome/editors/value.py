"""v*, the value that makes the model say the new object (section 4.3, eq. 13).

v* = v0 + delta replaces the output of W_out at the subject's last token; delta is found by Adam so that the target
becomes likely after the prompt in every context, while what the model says of the subject elsewhere ("{} is a") stays
put. The loss is

    mean over contexts of NLL(target) / tokens  +  kl_factor * KL  +  norm_penalty * ||delta|| / ||v0||^2

The draft preset has the first term alone, summed over tokens, by plain gradient descent.

Nothing below the layer and nothing before the subject's last token depends on delta. So each step runs the blocks
from the layer up, on the positions from the subject's last token on, and unembeds the scored positions only; the keys
and values of what comes before are computed once. Prompts are aligned at the subject's last token, with padding on the
left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm.auto import tqdm

from tl_rome.blocks import BlockRunner
from tl_rome.editors.config import RomeConfig
from tl_rome.errors import NumericsError
from tl_rome.facts import Fact
from tl_rome.forward import device_of, final_logits, last_resid, record
from tl_rome.sites import HookedModel, Site, value_hook
from tl_rome.tokens import Prompt, encode_fact, encode_target, pad


@dataclass(frozen=True, eq=False)
class OptimisedValue:
    """The outcome of one optimisation."""

    value: Float[Tensor, " d_model"]
    """v*, what W_out should give for k*, bias included."""
    initial: Float[Tensor, " d_model"]
    """v0, what it gave for the prompt without a prefix."""
    losses: tuple[dict[str, float], ...]
    """Per evaluation: loss, nll, kl, penalty (nats), and the mean probability of the target over contexts."""


@contextmanager
def frozen(model: HookedModel) -> Iterator[None]:
    """Parameters need no gradients inside, which makes those of activations cheap; each is as it was afterwards."""
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


@dataclass(frozen=True, eq=False)
class _Batch:
    """All prompts of one optimisation: the rewriting prompt in every context, then the essence prompt."""

    tokens: Int[Tensor, "rows pos"]
    """Padded on both sides, with every subject's last token at position `start`."""
    padding: Int[Tensor, " rows"]
    """Padding tokens on the left."""
    start: int
    scored: Int[Tensor, "contexts target"]
    """Position, counted from `start`, whose logits predict each target token."""
    target: Int[Tensor, " target"]

    @classmethod
    def make(cls, model: HookedModel, fact: Fact, contexts: Sequence[str], kl_template: str) -> "_Batch":
        assert fact.target is not None
        prompts: list[Prompt] = [encode_fact(model, fact, prefix) for prefix in contexts]
        essence = encode_fact(model, Fact(kl_template, fact.subject))
        target = encode_target(model, fact.target, prompts[0].text)
        last = torch.tensor([prompt.subject.last for prompt in [*prompts, essence]])
        start = int(last.max())
        texts = [torch.cat([prompt.tokens, target[:-1]]) for prompt in prompts]
        rows = zip([*texts, essence.tokens], start - last, strict=True)
        tokens = pad([torch.nn.functional.pad(text, (int(missing), 0)) for text, missing in rows]).tokens
        device = device_of(model)
        first = torch.tensor([len(prompt.tokens) - 1 - prompt.subject.last for prompt in prompts])
        scored = first[:, None] + torch.arange(len(target))
        return cls(tokens.to(device), (start - last).to(device), start, scored.to(device), target.to(device))


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
        UnsupportedModelError: If the model's blocks cannot be run one by one.
    """
    batch = _Batch.make(model, fact, contexts, config.kl_template)
    with frozen(model), torch.enable_grad():
        loss_of = _Loss(model, layer, batch, config)
        delta = torch.zeros_like(loss_of.initial, requires_grad=True)
        optimiser = _optimiser(delta, config)
        losses: list[dict[str, float]] = []
        for step in tqdm(range(config.max_evaluations), desc="optimise v*", unit="step", disable=not progress):
            loss, parts = loss_of(delta)
            losses.append(parts)
            if not torch.isfinite(loss):
                raise NumericsError(f"the loss of v* is {loss.item()} at step {step}; look for NaN or inf weights")
            if loss.item() < config.stop_loss or step == config.max_evaluations - 1:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                if config.clamp is not None:
                    delta.mul_((config.clamp * loss_of.initial.norm() / delta.norm()).clamp(max=1.0))
    return OptimisedValue((loss_of.initial + delta).detach(), loss_of.initial, tuple(losses))


def _optimiser(delta: Float[Tensor, " d_model"], config: RomeConfig) -> torch.optim.Optimizer:
    if config.optimiser == "gradient_descent":
        return torch.optim.SGD([delta], lr=config.learning_rate)
    return torch.optim.Adam([delta], lr=config.learning_rate, weight_decay=config.weight_decay)


class _Loss:
    """The loss of v* as a function of delta, with everything that does not depend on delta computed once."""

    def __init__(self, model: HookedModel, layer: int, batch: _Batch, config: RomeConfig) -> None:
        self.model, self.layer, self.batch, self.config = model, layer, batch, config
        outputs: list[Tensor] = []
        first, bottom, top = Site("resid_pre", 0).hook, Site("resid_pre", layer).hook, last_resid(model)
        with torch.no_grad():
            with value_hook(model, layer, outputs.append):
                found, attended = record(model, batch.tokens, [first, bottom, top], padding=batch.padding)
            self.runner = BlockRunner(model, batch.tokens, batch.start, batch.padding)
            self.runner.check(found[first][:, batch.start :], attended, found[top][:, batch.start :])
        self.initial = outputs[0][0, batch.start].clone()
        self.resid = found[bottom][:, batch.start :]
        self.past = [self.runner.crop(cached) for cached in attended]
        self.essence: Tensor | None = None

    def __call__(self, delta: Float[Tensor, " d_model"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Total loss, differentiable in delta, and its parts."""
        target, config = self.batch.target, self.config
        resid = self._run(delta)
        contexts = torch.arange(len(self.batch.scored), device=resid.device)
        logprobs = final_logits(self.model, resid[contexts[:, None], self.batch.scored]).log_softmax(-1)
        token_nll = -logprobs.gather(2, target.expand(len(contexts), -1)[..., None])[..., 0]
        nll_each = token_nll.sum(1) if config.sum_token_nll else token_nll.mean(1)
        essence = final_logits(self.model, resid[-1:, 0]).log_softmax(-1)
        if self.essence is None:
            self.essence = essence.detach().clone()
        nll = nll_each.mean()
        kl = config.kl_factor * kl_div(self.essence, essence, log_target=True, reduction="batchmean")
        penalty = config.norm_penalty * delta.norm() / self.initial.norm() ** 2
        loss = nll + kl + penalty
        parts = {"loss": loss, "nll": nll, "kl": kl, "penalty": penalty, "target_prob": (-nll_each).exp().mean()}
        return loss, {name: value.item() for name, value in parts.items()}

    def _run(self, delta: Float[Tensor, " d_model"]) -> Float[Tensor, "rows pos d_model"]:
        def add(output: Tensor) -> Tensor:
            return torch.cat([output[:, :1] + delta, output[:, 1:]], dim=1)

        resid = self.resid
        with value_hook(self.model, self.layer, add):
            for layer in range(self.layer, self.model.cfg.n_layers):
                resid = self.runner(layer, resid, self.past[layer])
        return resid
