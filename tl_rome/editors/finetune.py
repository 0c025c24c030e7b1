"""Fine-tuning baselines: one MLP's W_out trained on the one new fact (appendix E.1).

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
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from tl_rome.arguments import Count, Finite, Positive
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.finish import finish_edit
from tl_rome.editors.edits.receipts.outcome import probe_requests
from tl_rome.editors.edits.receipts.receipt import UpdateFigures
from tl_rome.editors.edits.update import DenseUpdate
from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.layers import LayerChoice, choose_layer
from tl_rome.editors.model_defaults import find_defaults
from tl_rome.editors.suffix import Runner, suffix_runner
from tl_rome.errors import NumericsError
from tl_rome.facts import EditRequest, check_requests
from tl_rome.running.blocks import frozen
from tl_rome.running.forward import device_of, final_logits
from tl_rome.running.matrices import MlpMatrix, key_hook, w_out
from tl_rome.running.memory import Halving, fitting
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, encode_target, pad

_REMEDY = "more steps (max_steps), a larger epsilon, or another layer"


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """Settings of one fine-tuning edit.

    Raises:
        InputError: If a number is out of its range.
    """

    preset: str
    """Name of the method; written into every receipt."""
    learning_rate: Positive = 5e-4
    """Step size of Adam on W_out."""
    max_steps: Count = 25
    """Steps of Adam, each after one evaluation of the loss."""
    stop_loss: Finite = 0.03
    """Training ends as soon as the NLL falls below this, in nats."""
    epsilon: Positive | None = None
    """Largest change of any single weight; None means no limit."""


_COPIES = 8
"""Matrices in float32 for each request: its change, the gradient, two moments, and what steps make of them."""

FT = FineTuneConfig(preset="ft")
"""Unconstrained; the paper edits layer 1 of GPT-2 XL (appendix E.1)."""

FT_L = FineTuneConfig(preset="ft_l", epsilon=5e-4)
"""Constrained in the maximum norm; the paper edits layer 0 of GPT-2 XL (appendix E.1)."""


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
    def prepare(cls, model: HookedModel, *, config: FineTuneConfig = FT, layer: LayerChoice = None) -> "FineTune":
        """An editor whose epsilon, where the preset has one, is that of a sweep on the model if there was one.

        Args:
            model: A HookedTransformer or TransformerBridge.
            config: Settings; `FT_L` takes the epsilon of `model_defaults`, anything else is kept.
            layer: Layer whose W_out is trained, as `Rome.prepare` takes it; by default the first.

        Raises:
            InputError: If the layer is out of range.
        """
        found = find_defaults(model)
        if config == FT_L and found is not None and found.row.epsilon is not None:
            config = replace(config, epsilon=found.row.epsilon)
        chosen, why = (0, "the default of fine-tuning") if layer is None else choose_layer(model, layer)
        return cls(chosen, config, why)

    def identity(self) -> dict[str, Any]:
        """What decides the edits, JSON-serialisable; not the reason for the layer, nor the preset's name."""
        config = {name: value for name, value in asdict(self.config).items() if name != "preset"}
        return {"editor": type(self).__qualname__, "layer": self.layer, "config": config}

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
        batch_size: Count | None = None,
        progress: bool = False,
    ) -> list[Edit]:
        """Make an edit for each request as if alone, training many at once; the model is left as found.

        Args:
            model: A HookedTransformer or TransformerBridge.
            requests: The facts to write, each in a model of its own.
            batch_size: Requests trained at once, those of about equal length together; each needs eight times the
                memory of the matrix in float32. By default what fits the device, 8 on a CPU. Where memory runs out,
                half.
            progress: Whether to show a progress bar over steps.

        Returns:
            One edit per request, in order.

        Raises:
            InputError: If the layer is out of range, or a prompt is longer than the context.
            UnsupportedModelError: If the model has no W_out there, or its blocks cannot be run one by one.
            NumericsError: If a loss is not finite.
        """
        check_requests(requests)
        with borrowed_for_gradients(model):
            return self._each(model, requests, batch_size, progress)

    def _each(
        self, model: HookedModel, requests: Sequence[EditRequest], batch_size: int | None, progress: bool
    ) -> list[Edit]:
        each = _COPIES * 4 * w_out(model, self.layer).numel()
        bound = batch_size or fitting(model, "requests to train", usual=8, each=each, most=64)
        order = sorted(range(len(requests)), key=lambda index: len(_tokens(model, requests[index])))
        halving, edits = Halving("requests to train"), dict[int, Edit]()

        def train(places: Sequence[int]) -> list[Edit]:
            return self._together(model, [requests[place] for place in places], progress)

        for first in range(0, len(requests), bound):
            for places, made in halving(order[first : first + bound], train):
                edits.update(zip(places, made, strict=True))
        return [edits[place] for place in range(len(requests))]

    def _together(self, model: HookedModel, requests: Sequence[EditRequest], progress: bool) -> list[Edit]:
        started, edits = time.perf_counter(), []
        trained = _train(model, self.layer, requests, self.config, progress)
        outcomes = probe_requests(model, requests)
        shared = (time.perf_counter() - started) / len(requests)
        unedited: dict[MlpMatrix, str] = {}
        for request, (change, losses), before in zip(requests, trained, outcomes, strict=True):
            started = time.perf_counter() - shared
            updates, figures = [DenseUpdate(self.layer, change.cpu())], self._figures(model, losses)
            made = {"provenance": self._provenance(model, losses), "started": started, "remedy": _REMEDY}
            made |= {"unedited": unedited}
            edits.append(finish_edit(model, request, updates, figures, before=before, **made))
        return edits

    def _figures(self, model: HookedModel, losses: Sequence[float]) -> UpdateFigures:
        return UpdateFigures(
            preset=self.config.preset,
            departures=self._departures(model),
            layer_choice=self.layer_choice,
            losses=tuple(losses),
        )

    def _departures(self, model: HookedModel) -> str:
        """An epsilon that is not the paper's, and whether it is that of another model of the same shape."""
        if self.config.preset != FT_L.preset or self.config.epsilon == FT_L.epsilon:
            return ""
        found = find_defaults(model)
        guessed = found is not None and found.guess and found.row.epsilon == self.config.epsilon
        return f"epsilon={self.config.epsilon!r}" + (f" ({found.guess})" if found is not None and guessed else "")

    def _provenance(self, model: HookedModel, losses: Sequence[float]) -> dict[str, Any]:
        return {
            "editor": type(self).__name__,
            "config": asdict(self.config),
            "prepend_bos": bool(model.cfg.default_prepend_bos),
            "losses": list(losses),
        }


def _train(
    model: HookedModel, layer: int, requests: Sequence[EditRequest], config: FineTuneConfig, progress: bool
) -> list[tuple[Float[Tensor, "d_mlp d_model"], list[float]]]:
    """For each request the change of W_out in float32, and the loss at each evaluation; none follows the last step."""
    losses: list[list[float]] = [[] for _ in requests]
    weight = w_out(model, layer)
    changes = [torch.zeros_like(weight, dtype=torch.float32, requires_grad=True) for _ in requests]
    batch, device = pad([_tokens(model, request) for request in requests]), device_of(model)
    tokens, lengths = batch.tokens.to(device), batch.lengths.to(device)
    with (
        frozen(model),
        torch.enable_grad(),
        suffix_runner(model, tokens, layer, lengths=lengths, names=[key_hook(layer)]) as runner,
    ):
        loss_of = _Loss(model, runner, runner.found[key_hook(layer)].float(), requests, changes)
        optimiser = torch.optim.Adam(changes, lr=config.learning_rate)
        for step in tqdm(range(config.max_steps), desc=config.preset, unit="step", disable=not progress):
            each = loss_of()
            figures = torch.stack([loss.detach() for loss in each]).cpu()  # all that a step waits for
            for request, figure in zip(loss_of.left, figures.tolist(), strict=True):
                losses[request].append(figure)
            if not bool(figures.isfinite().all()):
                raise NumericsError(f"a loss is {figures.max().item()} at step {step}; look for NaN or inf weights")
            unfinished = (figures >= config.stop_loss).nonzero()[:, 0].tolist()
            if not unfinished:
                break
            # Without a gradient Adam leaves the change of a request that has ended as it is.
            optimiser.zero_grad()
            torch.stack([each[row] for row in unfinished]).sum().backward()
            loss_of.keep(unfinished)
            for request in set(range(len(requests))) - set(loss_of.left):
                changes[request].grad = None
            optimiser.step()
            if config.epsilon is not None:
                for change in changes:
                    change.data.clamp_(-config.epsilon, config.epsilon)
    return [(change.detach(), found) for change, found in zip(changes, losses, strict=True)]


def _tokens(model: HookedModel, request: EditRequest) -> Int[Tensor, " pos"]:
    """The prompt with the target, but for its last token."""
    prompt = encode(model, request.fact.prompt)
    return torch.cat([prompt, _target(model, request)[:-1]])


def _target(model: HookedModel, request: EditRequest) -> Int[Tensor, " target"]:
    """The new object's tokens after the prompt."""
    return encode_target(model, request.target_new, request.fact.prompt, request.joiner)


class _Loss:
    """The loss of each request that is left, as a function of the changes."""

    def __init__(
        self,
        model: HookedModel,
        runner: Runner,
        keys: Float[Tensor, "requests pos d_mlp"],
        requests: Sequence[EditRequest],
        changes: Sequence[Float[Tensor, "d_mlp d_model"]],
    ) -> None:
        self.model, self._runner, self._keys, self._changes = model, runner, keys, changes
        self._targets = [_target(model, request) for request in requests]
        self._starts = [len(encode(model, request.fact.prompt)) - 1 for request in requests]
        self.left = list(range(len(requests)))
        self._scored = self._lay_out()

    def __call__(self) -> list[Float[Tensor, ""]]:
        """Mean NLL of a token of each target, in nats."""
        resid = self._runner(self._keys @ torch.stack([self._changes[request] for request in self.left]))
        rows, places, expected = self._scored
        scored = cross_entropy(final_logits(self.model, resid[rows, places]).float(), expected, reduction="none")
        return [tokens.mean() for tokens in scored.split([len(self._targets[request]) for request in self.left])]

    def _lay_out(self) -> Int[Tensor, "3 scored"]:
        """Row, position and token of all that is scored, on the model's device."""
        scored = [
            (row, self._starts[request] + place, token)
            for row, request in enumerate(self.left)
            for place, token in enumerate(self._targets[request].tolist())
        ]
        return torch.tensor(scored).T.to(self._keys.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the requests that are left, given by their places among those."""
        if len(rows) < len(self.left):
            chosen = torch.tensor(rows, device=self._keys.device)
            self.left, self._keys = [self.left[row] for row in rows], self._keys[chosen]
            self._scored = self._lay_out()
            self._runner.keep(chosen)
