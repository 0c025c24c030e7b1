"""Integrated gradients of an answer's probability by the neurons of every layer (Dai et al. 2022, eq. 3).

    Attr_i = w_i (1/m) sum_k dP(y | prompt; this layer's neurons at the last position set to a_k w) / d neuron_i

w are the neurons' values at the prompt's last position. Earlier positions keep theirs, layers above react. P is the
probability, not its logarithm; that of an answer of several tokens is their mean, all read at the prompt's last
position, as the released code averages one integral for each token.

Points a_k: "left" is the paper's Riemann sum, k/m for k = 0 ... m-1. "ends" is what the knowledge-neurons library and
the released code do: k/(m-1), both ends in, and still divided by m.

Only the last position changes, and only from the scaled layer up. So all layers take one upward sweep: the m rows of a
layer join there, on the last position alone, with the prompt's attention keys and values from a recorded run.
"""

from collections.abc import Sequence
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count
from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.knowledge_neurons.scores import NeuronScores, NeuronSite, Points
from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.running.blocks import BlockRunner, first_run, frozen
from tl_rome.running.forward import device_of, final_logits, last_resid, record
from tl_rome.running.hooks import Hook, hooked
from tl_rome.sites import HookedModel, Site, hook_points
from tl_rome.storage.files import fingerprint
from tl_rome.tokens import encode, encode_target, token_labels


def attribute_neurons(
    model: HookedModel,
    prompt: str,
    target: str | Int[Tensor, " target"],
    *,
    site: NeuronSite = "post",
    points: Points = "ends",
    steps: Count = 20,
    max_batch_tokens: Count = 2048,
    progress: bool = False,
) -> NeuronScores:
    """Find how much each neuron contributes to an answer.

    Args:
        model: Left as found.
        prompt: Text that ends just before the answer.
        target: The answer: text, tokenised as what follows the prompt (see `encode_target`), or token ids.
        site: Where a neuron's value is read and scaled; "post" is the paper's definition.
        points: Where the path from 0 to that value is sampled.
        steps: At how many points.
        max_batch_tokens: Bound on rows x positions of the prompt run at once; memory is proportional to it, and to the
            number of layers.
        progress: Whether to show a progress bar over rows.

    Raises:
        InputError: If the answer has no token, one that is not in the vocabulary, or the prompt exceeds the context.
        UnsupportedModelError: If a layer has no such neurons, or the model's blocks cannot be run one by one.
        NumericsError: If a score is not finite.
    """
    with borrowed_for_gradients(model), frozen(model):
        tokens = encode(model, prompt)
        answer = encode_target(model, target, prompt) if isinstance(target, str) else _checked(model, target)
        with first_run():
            sweep = _Sweep(model, tokens, site)
            sweep.check()
        rows = [(layer, scale) for layer in range(model.cfg.n_layers) for scale in _scales(points, steps)]
        gradients = torch.zeros(sweep.values.shape, dtype=torch.float64)
        at_once = max(1, max_batch_tokens // len(tokens))
        with tqdm(total=len(rows), desc="neurons", unit="row", disable=not progress) as bar:
            for first in range(0, len(rows), at_once):
                chunk = rows[first : first + at_once]
                for layer, gradient in sweep.gradients(chunk, answer).items():
                    gradients[layer] += gradient
                bar.update(len(chunk))
        probs, activations = sweep.probs(), sweep.values.cpu().double()
    return NeuronScores(
        scores=activations * gradients / steps,
        activations=activations,
        prob=probs[answer].mean().item(),
        predicted=int(probs.argmax()),
        prompt=prompt,
        answer=token_labels(model, answer),
        site=site,
        points=points,
        steps=steps,
        model=fingerprint(model),
    )


def _checked(model: HookedModel, target: Int[Tensor, " target"]) -> Int[Tensor, " target"]:
    """Token ids that the model has."""
    ids = target.long().cpu().clone()  # an ordinary tensor, also of one made in inference mode
    if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= model.cfg.d_vocab:
        raise InputError(f"target is {ids.tolist()}; give at least one token id from 0 to {model.cfg.d_vocab - 1}")
    return ids


def _scales(points: Points, steps: int) -> list[float]:
    last = max(1, steps - 1) if points == "ends" else steps
    return [k / last for k in range(steps)]


class _Sweep:
    """Runs of one prompt's last position, from any layer up, with that layer's neurons scaled."""

    def __init__(self, model: HookedModel, tokens: Int[Tensor, " pos"], site: NeuronSite) -> None:
        layers = range(model.cfg.n_layers)
        self._model, self._names = model, [f"blocks.{layer}.mlp.hook_{site}" for layer in layers]
        if missing := [name for name in self._names if name not in hook_points(model)]:
            raise UnsupportedModelError(f"this model has no neurons at {', '.join(missing[:3])}; plain MLPs have")
        entries, top, batch = [Site("resid_pre", layer).hook for layer in layers], last_resid(model), tokens[None]
        with torch.no_grad():
            found, attended = record(model, batch, [*self._names, *entries, top])
        shape = (1, len(tokens), model.cfg.d_mlp)
        if wrong := [name for name in self._names if found[name].shape != shape]:
            raise UnsupportedModelError(
                f"{wrong[0]} is {list(found[wrong[0]].shape)}, not one value for each of {shape[2]} neurons"
            )
        self.values: Float[Tensor, "n_layers d_mlp"] = torch.stack([found[name][0, -1] for name in self._names])
        """The neurons' values in the unchanged run."""
        self._entries, self._top = [found[name][:, -1:] for name in entries], found[top][:, -1:]
        self._runner = BlockRunner(model, batch.to(device_of(model)), len(tokens) - 1)
        self._past = [self._runner.crop(layer) for layer in attended]

    @torch.no_grad()
    def check(self) -> None:
        """Make sure that running block by block gives what the model itself computed.

        Raises:
            UnsupportedModelError: If it does not.
        """
        twice = [(keys.expand(2, *keys.shape[1:]), values.expand(2, *values.shape[1:])) for keys, values in self._past]
        self._runner.check(self._entries[0].expand(2, -1, -1), twice, self._top.expand(2, -1, -1))

    @torch.no_grad()
    def probs(self) -> Float[Tensor, " d_vocab"]:
        """Probabilities of the next token in the unchanged run, on the CPU."""
        return self._logprobs(self._top)[0].exp().cpu()

    def gradients(
        self, rows: Sequence[tuple[int, float]], answer: Int[Tensor, " target"]
    ) -> dict[int, Float[Tensor, " d_mlp"]]:
        """Gradient of the answer's probability by each layer's neurons, summed over its rows; float64, on the CPU.

        Args:
            rows: Layer and scale of each, lower layers first.
            answer: Token ids.
        """
        scales: dict[int, list[float]] = {}
        for layer, scale in rows:
            scales.setdefault(layer, []).append(scale)
        leaves = {layer: self._scaled(layer, of_layer) for layer, of_layer in scales.items()}
        with torch.enable_grad(), hooked(self._model, [self._put(layer, leaf) for layer, leaf in leaves.items()]):
            logprobs = self._logprobs(self._climb({layer: len(leaf) for layer, leaf in leaves.items()}))
            # The mean probability's logarithm, whose gradient does not underflow where the probability is small.
            logprob = logprobs[:, answer.to(logprobs.device)].logsumexp(-1) - log(len(answer))
            found = torch.autograd.grad(logprob.sum(), list(leaves.values()))
        probs = logprob.detach().cpu().double().exp().split([len(leaf) for leaf in leaves.values()])
        parts = zip(leaves, found, probs, strict=True)
        return {layer: prob @ gradient.cpu().double() for layer, gradient, prob in parts}

    def _scaled(self, layer: int, scales: Sequence[float]) -> Float[Tensor, "rows d_mlp"]:
        """The layer's values times each scale, to take gradients of."""
        values = torch.tensor(scales, dtype=torch.float64)[:, None] * self.values[layer].cpu().double()
        return values.to(self.values).requires_grad_()

    def _put(self, layer: int, scaled: Float[Tensor, "rows d_mlp"]) -> Hook:
        """A hook that writes the scaled values into the rows that join at a layer, which are the last ones there."""

        def write(values: Tensor, hook: object) -> Tensor:
            return torch.cat([values[: len(values) - len(scaled)], scaled[:, None]])

        return self._names[layer], write

    def _climb(self, joining: dict[int, int]) -> Float[Tensor, "rows 1 d_model"]:
        """The last block's output, where this many rows join at each layer."""
        resid = self._top[:0]
        for layer in range(min(joining), self._model.cfg.n_layers):
            resid = torch.cat([resid, self._entries[layer].expand(joining.get(layer, 0), -1, -1)])
            keys, values = (part.expand(len(resid), *part.shape[1:]) for part in self._past[layer])
            resid = self._runner(layer, resid, (keys, values))
        return resid

    def _logprobs(self, resid: Float[Tensor, "rows 1 d_model"]) -> Float[Tensor, "rows d_vocab"]:
        """Log-probabilities of the next token, in float32 at least."""
        logits = final_logits(self._model, resid[:, 0])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
