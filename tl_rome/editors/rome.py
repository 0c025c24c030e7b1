"""Rank-one model editing (section 4): insert one key-value pair into one MLP's W_out.

With W = W_out^T, key k*, value v* and C = E[k k^T], the W' nearest to W (weighted by C) with W' k* = v* is

    W' = W + (v* - W k*) u^T / (k* . u),   u = C^-1 k*

The released code, which `RELEASED` follows, takes u from k* averaged over contexts and normalises it, but divides by,
and subtracts, the key and output of the prompt without a prefix; so W' maps exactly that key to v*.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.config import RELEASED, RomeConfig, default_layer
from tl_rome.editors.contexts import sample_contexts
from tl_rome.editors.covariance import KeyCovariance
from tl_rome.editors.edit import Edit
from tl_rome.editors.key import subject_keys
from tl_rome.editors.receipt import Receipt
from tl_rome.editors.update import RankOneUpdate
from tl_rome.editors.value import OptimisedValue, optimise_value
from tl_rome.errors import NumericsError
from tl_rome.facts import EditRequest
from tl_rome.scoring import score_targets
from tl_rome.sites import HookedModel, b_out, check_layer, is_hooked_transformer, w_out
from tl_rome.storage import fingerprint


@dataclass(frozen=True, eq=False)
class Rome:
    """The ROME editor for one model and layer: call it with a model and a request to get an `Edit`.

    It holds everything expensive, so that many edits share it; `Rome.prepare` makes one with defaults.
    """

    covariance: KeyCovariance
    """Key statistics of the layer to edit."""
    contexts: tuple[str, ...]
    """Prefixes, the empty one first."""
    config: RomeConfig = RELEASED
    """Preset."""
    layer_choice: str = "given"
    """Why this layer, for the receipt."""
    seed: int | None = None
    """Seed that contexts and own samples were drawn with, if they were."""

    @classmethod
    def prepare(
        cls,
        model: HookedModel,
        *,
        layer: int | None = None,
        covariance: KeyCovariance | None = None,
        contexts: Sequence[str] | None = None,
        config: RomeConfig = RELEASED,
        seed: int = 0,
        progress: bool = True,
    ) -> "Rome":
        """An editor with every part that is not given chosen for the model.

        Args:
            model: Left as found.
            layer: Layer to edit; by default that of the covariance, else `default_layer`.
            covariance: Key statistics; by default those shipped with the package where they fit the model and layer,
                else an estimate from text that the model samples itself, which takes minutes: keep the editor, or save
                its covariance.
            contexts: Prefixes; by default sampled from the model by the preset's recipe.
            config: Preset.
            seed: Seed of the generator that samples contexts and text.
            progress: Whether long work shows progress bars.

        Raises:
            InputError: If the layer is out of range, or the covariance is of another layer.
            ModelMismatchError: If the covariance is of another model.
        """
        is_hooked_transformer(model)
        choice = "given"
        if layer is None and covariance is not None:
            layer, choice = covariance.layer, "that of the covariance"
        elif layer is None:
            layer, choice = default_layer(model.cfg.n_layers, model.cfg.d_model), "default for this model's size"
        check_layer(model, layer)
        generator = torch.Generator().manual_seed(seed)
        chosen = tuple(contexts) if contexts is not None else sample_contexts(model, config, generator=generator)
        if covariance is None:
            shipped = KeyCovariance.shipped(model)
            covariance = shipped if shipped is not None and shipped.layer == layer else None
        if covariance is None:
            covariance = KeyCovariance.from_own_samples(model, layer, generator=generator, progress=progress)
        covariance.check(model, layer)
        return cls(covariance, chosen, config, choice, seed)

    @property
    def layer(self) -> int:
        """Layer that is edited."""
        return self.covariance.layer

    def __call__(self, model: HookedModel, request: EditRequest, *, progress: bool = False) -> Edit:
        """Make an edit; the model is left as found.

        Args:
            model: The model that the editor was prepared for.
            request: The fact to write.
            progress: Whether to show a progress bar over the optimisation.

        Raises:
            SubjectError: If the subject does not lie on whole tokens.
            InputError: If a prompt is longer than the context.
            ModelMismatchError: If the covariance is of another model.
            NumericsError: If weights, keys or loss are not finite, or the covariance is singular.
        """
        started = time.perf_counter()
        self.covariance.check(model, self.layer)
        keys = subject_keys(model, self.layer, request.fact, self.contexts)
        found = optimise_value(model, self.layer, request.fact, self.contexts, self.config, progress=progress)
        update, divisor = self._update(model, keys, found)
        provenance = {
            "editor": type(self).__name__,
            "config": asdict(self.config),
            "contexts": list(self.contexts),
            "seed": self.seed,
            "prepend_bos": bool(model.cfg.default_prepend_bos),
            "covariance": self.covariance.digest,
            "losses": list(found.losses),
        }
        receipt = Receipt(
            prompt=request.fact.prompt,
            target_new=request.target_new,
            target_true=request.target_true,
            prob_new=(0.0, 0.0),
            prob_true=None,
            preset=self.config.preset,
            layer=self.layer,
            layer_choice=self.layer_choice,
            contexts=len(self.contexts),
            covariance=f"{self.covariance.count} tokens, {self.covariance.source}",
            relative_change=(update.delta.norm() / w_out(model, self.layer).double().norm().cpu()).item(),
            divisor=divisor,
            key_norm=keys.mean(0).norm().item(),
            evaluations=len(found.losses),
            final_loss=found.losses[-1]["loss"],
            seconds=0.0,
        )
        edit = Edit((update,), request, receipt, fingerprint(model), provenance)
        return replace(edit, receipt=_measured(model, edit, started))

    def _update(
        self, model: HookedModel, keys: Float[Tensor, "contexts d_mlp"], found: OptimisedValue
    ) -> tuple[RankOneUpdate, float]:
        """The closed form, in float64, and its divisor k . u."""
        solved = self.covariance.solve(keys.double().mean(0))
        u = solved / solved.norm()
        key = keys[0].double().cpu()
        weight = w_out(model, self.layer).detach().double().cpu()
        output = key @ weight + b_out(model, self.layer).detach().double().cpu()
        divisor = (key @ u).item()
        if abs(divisor) < 1e-8 * key.norm().item():
            raise NumericsError(f"k* and C^-1 k* are orthogonal (k . u = {divisor:.3g}); use another covariance")
        return RankOneUpdate(self.layer, u, (found.value.double().cpu() - output) / divisor), divisor


def _measured(model: HookedModel, edit: Edit, started: float) -> Receipt:
    """The edit's receipt with probabilities before and after."""
    request = edit.request
    targets = [target for target in (request.target_new, request.target_true) if target is not None]
    prompts = [request.fact.prompt] * len(targets)
    before = score_targets(model, prompts, targets).prob.tolist()
    with edit.applied(model):
        after = score_targets(model, prompts, targets).prob.tolist()
    pairs = list(zip(before, after, strict=True))
    true = pairs[1] if len(pairs) > 1 else None
    return replace(edit.receipt, prob_new=pairs[0], prob_true=true, seconds=time.perf_counter() - started)


def rome(
    model: HookedModel,
    template: str,
    subject: str,
    target_new: str,
    *,
    target_true: str | None = None,
    layer: int | None = None,
    covariance: KeyCovariance | None = None,
    contexts: Sequence[str] | None = None,
    config: RomeConfig = RELEASED,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Edit one fact in one call; the model is left as found, and `edit.applied(model)` puts the edit in.

    Args:
        model: A HookedTransformer or TransformerBridge.
        template: Prompt with one `{}` in the subject's place, ending just before the object.
        subject: The entity.
        target_new: What the model should say, without a leading space.
        target_true: What it says now; only reported.
        layer: Layer to edit; see `Rome.prepare` for this and the other defaults.
        covariance: Key statistics.
        contexts: Prefixes.
        config: Preset.
        seed: Seed of everything that is sampled.
        progress: Whether long work shows progress bars.

    Returns:
        The edit; `print(edit)` shows what it did.

    Raises:
        TLRomeError: See `Rome.prepare` and `Rome.__call__`.
    """
    request = EditRequest(template, subject, target_new, target_true)
    editor = Rome.prepare(
        model, layer=layer, covariance=covariance, contexts=contexts, config=config, seed=seed, progress=progress
    )
    return editor(model, request, progress=progress)
