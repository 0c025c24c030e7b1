"""Rank-one model editing (section 3.1): insert one key-value pair into one MLP's W_out.

    k*  from the subject (`key`),   v*  by optimisation (`value`),   W' = W + u v^T  in closed form (`closed_form`)

Every source of ROME is one `RomeConfig` of this implementation, see `presets`.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from tl_rome.arguments import Count, Seed
from tl_rome.editors.covariance.estimation import covariance_from_samples
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.finish import finish_edit
from tl_rome.editors.edits.receipts.outcome import probe_requests
from tl_rome.editors.edits.receipts.receipt import UpdateFigures
from tl_rome.editors.edits.update import LowRankUpdate
from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.layers import LayerChoice, choose_layer
from tl_rome.editors.rank_one.closed_form import Memory
from tl_rome.editors.rank_one.contexts import contexts_for
from tl_rome.editors.rank_one.key import Keys, chosen_keys, sink_warning
from tl_rome.editors.rank_one.presets import RELEASED, RomeConfig, departures_on, preset_named, with_model_defaults
from tl_rome.editors.rank_one.shared_values import ValueFinder
from tl_rome.editors.rank_one.value import OptimisedValue, optimise_values
from tl_rome.errors import InputError
from tl_rome.facts import EditRequest, Fact, check_requests
from tl_rome.running.arithmetic import in_float64
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.memory import Halving, fitting_tokens
from tl_rome.running.packed import read_matrix
from tl_rome.sites import HookedModel, is_hooked_transformer

_REMEDY = "another layer, more evaluations (extra_evaluations), or a larger clamp"
_AFTER_TEXT = ", or preset 'r_rome', since texts before the prompt pull the key away"


@dataclass(frozen=True, eq=False, repr=False)
class Rome:
    """The ROME editor for one model and layer: call it with a model and a request to get an `Edit`.

    It holds everything expensive, so that many edits share it; `Rome.prepare` makes one with defaults.

    Raises:
        InputError: If the first context is not the empty one.
    """

    covariance: KeyCovariance
    """Key statistics of the layer to edit."""
    contexts: tuple[str, ...]
    """Prefixes, the empty one first."""
    config: RomeConfig = RELEASED
    """Preset."""
    layer_choice: str = "given"
    """Why this layer, for the receipt."""
    seed: Seed | None = None
    """Seed that contexts and own samples were drawn with, if they were."""
    contexts_choice: str = "given"
    """How the contexts were chosen, for the receipt."""
    find_values: ValueFinder = optimise_values
    """Finds v*; with `SharedValues()` editors that differ only in their keys share the optimisation."""

    def __post_init__(self) -> None:
        if not self.contexts or self.contexts[0]:
            raise InputError(f"the first context must be '', the prompt without a prefix; got {self.contexts[:1]}")

    def __repr__(self) -> str:
        return f"<Rome, preset {self.config.preset}, {len(self.contexts)} contexts, {self.covariance!r}>"

    @classmethod
    def prepare(
        cls,
        model: HookedModel,
        *,
        layer: LayerChoice = None,
        covariance: KeyCovariance | None = None,
        contexts: Sequence[str] | Literal["recipe"] | None = None,
        config: RomeConfig | str = RELEASED,
        seed: Seed = 0,
        progress: bool = True,
    ) -> "Rome":
        """An editor with every part that is not given chosen for the model.

        Args:
            model: Left as found.
            layer: Layer to edit, something with a `.layer`, or a function that finds it, such as `tl_rome.find_layer`,
                which traces facts for a few minutes; by default that of the covariance, else `default_layer`.
            covariance: Key statistics; by default those shipped with the package where they fit the model and layer,
                else an estimate from text that the model samples itself, which takes minutes: keep the editor, or save
                its covariance.
            contexts: Prefixes, `""` first; by default sampled from the model by the preset's recipe, or by a better one
                where that gives junk (`choose_contexts`); "recipe" keeps to the preset in any case.
            config: Preset or its name, which takes what suits the model (`with_model_defaults`), or a configuration of
                your own, which is kept.
            seed: Seed of the generator that samples contexts and text.
            progress: Whether long work shows progress bars.

        Raises:
            InputError: If the layer is out of range, the covariance is of another layer or BOS policy, or no preset has
                this name.
            ModelMismatchError: If the covariance is of another model.
        """
        is_hooked_transformer(model)
        config = with_model_defaults(model, preset_named(config) if isinstance(config, str) else config)
        chosen_layer, layer_choice = choose_layer(model, layer, covariance)
        if covariance is not None:
            covariance.check(model, chosen_layer)  # before contexts are sampled
        generator = torch.Generator().manual_seed(seed)
        prefixes, contexts_choice = contexts_for(model, config, contexts, generator=generator)
        if covariance is None:
            shipped = KeyCovariance.shipped(model)
            covariance = shipped if shipped is not None and shipped.layer == chosen_layer else None
        if covariance is None:
            covariance = covariance_from_samples(model, chosen_layer, generator=generator, progress=progress)
        return cls(covariance, prefixes, config, layer_choice, seed, contexts_choice)

    @property
    def layer(self) -> int:
        """Layer that is edited."""
        return self.covariance.layer

    def identity(self) -> dict[str, Any]:
        """What decides the edits, JSON-serialisable: two editors that make the same edits are equal here.

        Left out are the reasons that receipts give, how v* is found, and the seed, whose draws are in the contexts and
        the covariance.
        """
        return {
            "editor": type(self).__qualname__,
            "covariance": {"digest": self.covariance.digest, "layer": self.layer},
            "contexts": list(self.contexts),
            "config": self.config.identity(),
        }

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
        return self.each(model, [request], progress=progress)[0]

    def each(
        self,
        model: HookedModel,
        requests: Sequence[EditRequest],
        *,
        max_batch_tokens: Count | None = None,
        progress: bool = False,
    ) -> list[Edit]:
        """Make an edit for each request as if alone, optimising many v* at once; the model is left as found.

        Args:
            model: The model that the editor was prepared for.
            requests: The facts to write, each in a model of its own.
            max_batch_tokens: Bounds memory, see `optimise_values`; by default what fits the device, 2048 on a CPU.
                Where memory runs out, requests are edited in halves.
            progress: Whether to show a progress bar over each optimisation.

        Returns:
            One edit per request, in order.

        Raises:
            TLRomeError: As a call with one request does.
        """
        check_requests(requests)
        self.covariance.check(model, self.layer)
        bound = max_batch_tokens or fitting_tokens(model, 2048, trained_from=self.layer)
        with borrowed_for_gradients(model):
            return self._each(model, requests, {"max_batch_tokens": bound, "progress": progress})

    def _each(self, model: HookedModel, requests: Sequence[EditRequest], options: dict[str, Any]) -> list[Edit]:
        started = time.perf_counter()
        facts = [request.fact for request in requests]
        cautions = [sink_warning(model, fact) for fact in facts]

        def find(part: Sequence[Fact]) -> list[OptimisedValue]:
            return self.find_values(model, self.layer, part, self.contexts, self.config, **options)

        found = [value for _, values in Halving("requests to edit")(facts, find) for value in values]
        outcomes = probe_requests(model, requests)
        memory = self._memory(model)
        shared, edits = (time.perf_counter() - started) / max(1, len(requests)), []
        unedited: dict[MlpMatrix, str] = {}
        for request, value, before, caution in zip(requests, found, outcomes, cautions, strict=True):
            started = time.perf_counter() - shared
            update, figures = self._update(model, memory, request, value, value.keys)
            made = {"provenance": self._provenance(model, value), "started": started, "contexts": self.contexts}
            made |= {"remedy": _REMEDY, "after_text": _AFTER_TEXT, "cautions": caution, "unedited": unedited}
            edits.append(finish_edit(model, request, [update], figures, before=before, **made))
        return edits

    def update_for(
        self, model: HookedModel, request: EditRequest, found: OptimisedValue
    ) -> tuple[LowRankUpdate, UpdateFigures]:
        """The update that stores a given v*, and what is known about it before it is applied.

        Args:
            model: Left as found.
            request: The fact to write.
            found: v* for it.

        Raises:
            SubjectError: If the subject does not lie on whole tokens.
            NumericsError: If the covariance is singular, or the keys do not match.
        """
        return self._update(model, self._memory(model), request, found, {})

    def _memory(self, model: HookedModel) -> Memory:
        return Memory(*read_matrix(model, MlpMatrix(self.layer)), self.covariance)

    def _update(
        self, model: HookedModel, memory: Memory, request: EditRequest, found: OptimisedValue, known: Keys
    ) -> tuple[LowRankUpdate, UpdateFigures]:
        config, layer = self.config, self.layer
        choices = (config.direction_key, config.divisor_key)
        keys = chosen_keys(model, layer, request.fact, self.contexts, choices, known)
        direction, key = (keys[choice] for choice in choices)
        value = in_float64(found.value)
        if config.value_base == "key":
            value = value - in_float64(found.initial) + memory.output(key)
        inserted = memory.insert(direction, key, value)
        figures = UpdateFigures(
            preset=config.preset,
            departures=departures_on(model, config),
            layer_choice=self.layer_choice,
            contexts=len(self.contexts),
            contexts_choice=self.contexts_choice,
            covariance=f"{self.covariance.count} tokens, {self.covariance.source}",
            divisor=inserted.divisor,
            divisor_ratio=inserted.divisor_ratio,
            disturbance=inserted.disturbance,
            key_norm=inserted.key_norm,
            losses=tuple(step["loss"] for step in found.losses),
        )
        return LowRankUpdate.rank_one(layer, inserted.u, inserted.v), figures

    def _provenance(self, model: HookedModel, found: OptimisedValue) -> dict[str, Any]:
        return {
            "editor": type(self).__name__,
            "config": asdict(self.config),
            "contexts": list(self.contexts),
            "seed": self.seed,
            "prepend_bos": bool(model.cfg.default_prepend_bos),
            "covariance": self.covariance.digest,
            "losses": list(found.losses),
        }
