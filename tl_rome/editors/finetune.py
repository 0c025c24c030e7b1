"""Fine-tuning baselines: one MLP's W_out trained on the one new fact (appendix B.1).

    FT     Adam, learning rate 5e-4, at most 25 steps, stop once the NLL of the target falls below 0.03
    FT+L   the same, and after each step every weight is put back within +-epsilon of what it was (Zhu et al. 2020)

The loss is the mean over the target's tokens, each predicted at its own position; the released code reads all tokens of
a target at one position. Only the prompt itself is trained on, without contexts.

The keys do not depend on W_out, so nothing below the layer is run again: each step puts keys @ change on top of the
layer's output and runs the blocks from there, and gradients are taken of the change alone. Many requests, each with a
change of its own, are trained in one batch; one alone is bound by reading all weights, twice a step.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from tl_rome.blocks import BlockRunner, check_blocks, frozen
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.outcome import Outcome, measure, measure_many
from tl_rome.editors.edits.receipt import Receipt
from tl_rome.editors.edits.safety import with_outcome
from tl_rome.editors.edits.update import DenseUpdate
from tl_rome.errors import InputError, NumericsError
from tl_rome.facts import EditRequest
from tl_rome.forward import device_of, final_logits, last_resid, record
from tl_rome.sites import HookedModel, Site, key_hook, value_hook, w_out
from tl_rome.storage.files import fingerprint
from tl_rome.tokens import encode, encode_target, pad


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """Settings of one fine-tuning edit.

    Raises:
        InputError: If a number is out of its range.
    """

    preset: str
    """Name of the method; written into every receipt."""
    learning_rate: float = 5e-4
    """Step size of Adam on W_out."""
    max_steps: int = 25
    """Steps of Adam, each after one evaluation of the loss."""
    stop_loss: float = 0.03
    """Training ends as soon as the NLL falls below this, in nats."""
    epsilon: float | None = None
    """Largest change of any single weight; None is no limit."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_steps < 1 or (self.epsilon is not None and self.epsilon <= 0):
            raise InputError(f"learning rate, steps and epsilon must be positive: {self}")


FT = FineTuneConfig(preset="ft")
"""Unconstrained; the document edits layer 1 of GPT-2 XL."""

FT_L = FineTuneConfig(preset="ft_l", epsilon=5e-4)
"""Constrained in the maximum norm; the document edits layer 0 of GPT-2 XL."""

_SWEPT_EPSILONS = {(30, 576): 2e-3}
"""By (n_layers, d_model): SmolLM2-135M, from a sweep on ten COUNTERFACT records."""


@dataclass(frozen=True, eq=False)
class FineTune:
    """The fine-tuning editor: call it with a model and a request to get an `Edit`."""

    layer: int = 0
    """Layer whose W_out is trained."""
    config: FineTuneConfig = FT
    """Settings."""
    layer_choice: str = "given"
    """Why this layer, for the receipt."""

    @classmethod
    def prepare(cls, model: HookedModel, config: FineTuneConfig = FT, *, layer: int = 0) -> "FineTune":
        """An editor whose epsilon, where the preset has one, is that of a sweep on the model if there was one.

        On SmolLM2-135M the document's 5e-4 leaves four facts in five as they were, and 2e-3 writes all of ten.

        Args:
            model: A HookedTransformer or TransformerBridge.
            config: Settings.
            layer: Layer whose W_out is trained.
        """
        swept = _SWEPT_EPSILONS.get((model.cfg.n_layers, model.cfg.d_model))
        if config == FT_L and swept is not None:
            config = replace(config, epsilon=swept)
        return cls(layer, config, "the default of fine-tuning")

    def __call__(self, model: HookedModel, request: EditRequest, *, progress: bool = False) -> Edit:
        """Make an edit; the model is left as found.

        Args:
            model: A HookedTransformer or TransformerBridge.
            request: The fact to write.
            progress: Whether to show a progress bar over steps.

        Raises:
            InputError: If the layer is out of range, or the prompt is longer than the context.
            UnsupportedModelError: If the model has no W_out there, or its blocks cannot be run one by one.
            NumericsError: If the loss is not finite.
        """
        return self.each(model, [request], progress=progress)[0]

    def each(
        self,
        model: HookedModel,
        requests: Sequence[EditRequest],
        *,
        max_rows: int = 8,
        progress: bool = False,
    ) -> list[Edit]:
        """Make an edit for each request as if alone, training many at once; the model is left as found.

        Args:
            model: A HookedTransformer or TransformerBridge.
            requests: The facts to write, each in a model of its own.
            max_rows: Requests trained at once, those of about equal length together; each needs four times the memory
                of the matrix in float32.
            progress: Whether to show a progress bar over steps.

        Returns:
            One edit per request, in order.

        Raises:
            InputError: If the layer is out of range, or a prompt is longer than the context.
            UnsupportedModelError: If the model has no W_out there, or its blocks cannot be run one by one.
            NumericsError: If a loss is not finite.
        """
        edits: dict[int, Edit] = {}
        order = sorted(range(len(requests)), key=lambda index: len(_tokens(model, requests[index])))
        for first in range(0, len(requests), max_rows):
            places = order[first : first + max_rows]
            chunk = [requests[place] for place in places]
            started = time.perf_counter()
            trained = _train(model, self.layer, chunk, self.config, progress)
            before = measure_many(model, chunk)
            shared = (time.perf_counter() - started) / len(chunk)
            for place, change, old in zip(places, trained, before, strict=True):
                edits[place] = self._edit(model, requests[place], change, old, shared)
        return [edits[place] for place in range(len(requests))]

    def _edit(
        self,
        model: HookedModel,
        request: EditRequest,
        trained: tuple[Float[Tensor, "d_mlp d_model"], list[float]],
        before: Outcome,
        seconds: float,
    ) -> Edit:
        """The edit that adds a change, with what it does to the model."""
        started = time.perf_counter()
        change, losses = trained
        weight = w_out(model, self.layer).detach()
        receipt = Receipt(
            prompt=request.fact.prompt,
            target_new=request.target_new,
            target_true=request.target_true,
            prob_new=(0.0, 0.0),
            prob_true=None,
            preset=self.config.preset,
            layer=self.layer,
            layer_choice=self.layer_choice,
            contexts=1,
            covariance=None,
            relative_change=(change.norm() / weight.float().norm()).item(),
            divisor=None,
            key_norm=None,
            evaluations=len(losses),
            final_loss=losses[-1],
            losses=tuple(losses),
            seconds=0.0,
        )
        provenance = {
            "editor": type(self).__name__,
            "config": asdict(self.config),
            "prepend_bos": bool(model.cfg.default_prepend_bos),
            "losses": losses,
        }
        edit = Edit((DenseUpdate(self.layer, change.cpu()),), request, receipt, fingerprint(model), provenance)
        with edit.applied(model):
            after = measure(model, request)
        receipt = with_outcome(edit.receipt, before, after)
        return replace(edit, receipt=replace(receipt, seconds=seconds + time.perf_counter() - started))


def _train(
    model: HookedModel, layer: int, requests: Sequence[EditRequest], config: FineTuneConfig, progress: bool
) -> list[tuple[Float[Tensor, "d_mlp d_model"], list[float]]]:
    """For each request the change of W_out in float32, and the loss at each evaluation; none follows the last step."""
    losses: list[list[float]] = [[] for _ in requests]
    with frozen(model), torch.enable_grad():
        loss_of = _Loss(model, layer, requests)
        optimiser = torch.optim.Adam(loss_of.changes, lr=config.learning_rate)
        with value_hook(model, layer, loss_of.add):
            for step in tqdm(range(config.max_steps), desc=config.preset, unit="step", disable=not progress):
                loss = loss_of()
                for request, figure in zip(loss_of.left, loss.tolist(), strict=True):
                    losses[request].append(figure)
                if not bool(loss.isfinite().all()):
                    raise NumericsError(f"a loss is {loss.max().item()} at step {step}; look for NaN or inf weights")
                unfinished = (loss >= config.stop_loss).nonzero()[:, 0]
                if len(unfinished) == 0:
                    break
                # Without a gradient Adam leaves the change of a request that has ended as it is.
                optimiser.zero_grad()
                loss[unfinished].sum().backward()
                loss_of.left = [loss_of.left[row] for row in unfinished.tolist()]
                for request in set(range(len(requests))) - set(loss_of.left):
                    loss_of.changes[request].grad = None
                optimiser.step()
                if config.epsilon is not None:
                    for change in loss_of.changes:
                        change.data.clamp_(-config.epsilon, config.epsilon)
    return [(change.detach(), found) for change, found in zip(loss_of.changes, losses, strict=True)]


def _tokens(model: HookedModel, request: EditRequest) -> Int[Tensor, " pos"]:
    """The prompt with the target, but for its last token."""
    prompt = encode(model, request.fact.prompt)
    return torch.cat([prompt, encode_target(model, request.target_new, request.fact.prompt)[:-1]])


class _Loss:
    """The loss of each request that is left, as a function of the changes that a `value_hook` with `add` puts in."""

    def __init__(self, model: HookedModel, layer: int, requests: Sequence[EditRequest]) -> None:
        self.model, self.layer, weight = model, layer, w_out(model, layer)
        rows = [_tokens(model, request) for request in requests]
        self._targets = [encode_target(model, request.target_new, request.fact.prompt) for request in requests]
        self._starts = [len(row) - len(target) for row, target in zip(rows, self._targets, strict=True)]
        tokens = pad(rows).tokens.to(device_of(model))
        pre, key, top = Site("resid_pre", layer).hook, key_hook(layer), last_resid(model)
        with torch.no_grad():
            found, attended = record(model, tokens, {pre, key, top})
        self.changes = [torch.zeros_like(weight, dtype=torch.float32, requires_grad=True) for _ in rows]
        self.left = list(range(len(rows)))
        self._resid, self._keys = found[pre], found[key].float()
        self._runner = BlockRunner(model, tokens, 0)
        self._past = [self._runner.crop(cached) for cached in attended]
        self._unedited: Tensor | None = found[top]

    def add(self, output: Float[Tensor, "left pos d_model"]) -> Float[Tensor, "left pos d_model"]:
        """The output of W_out, each row with its request's change."""
        changes = torch.stack([self.changes[request] for request in self.left])
        return (output + self._keys[self.left] @ changes).to(output.dtype)

    def __call__(self) -> Float[Tensor, " left"]:
        """Mean NLL of a token of each target, in nats."""
        resid = self._resid[self.left]
        for layer in range(self.layer, self.model.cfg.n_layers):
            past = self._past[layer]
            resid = self._runner(layer, resid, (past[0][self.left], past[1][self.left]), torch.tensor(self.left))
        targets = [self._targets[request] for request in self.left]
        sizes = torch.tensor([len(target) for target in targets])
        places = torch.cat([torch.arange(len(self._targets[i])) + self._starts[i] for i in self.left])
        rows = torch.arange(len(targets)).repeat_interleave(sizes)
        expected = torch.cat(targets).to(resid.device)
        read = resid[rows, places]
        if self._unedited is not None:
            check_blocks(read.detach(), self._unedited[rows, places])
            self._unedited = None
        scored = cross_entropy(final_logits(self.model, read).float(), expected, reduction="none")
        return torch.stack([tokens.mean() for tokens in scored.split(sizes.tolist())])
