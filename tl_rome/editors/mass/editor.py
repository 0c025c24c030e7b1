"""Mass editing: many facts, one change of a few layers.

    z from the optimisation (`rank_one.value`), keys and residuals layer by layer (`sweep`, `layers`), the change in
    closed form (`closed_form`)

Every source is one `MassConfig` of this implementation, see `config`.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

import torch

from tl_rome.arguments import Count, Seed
from tl_rome.editors.covariance.kept import check_covariances, covariances_for
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.edits.batch_edit import BatchEdit
from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.mass.batch import batch_edit
from tl_rome.editors.mass.config import MEMIT, MassConfig, mass_layers, mass_model_defaults, mass_preset_named
from tl_rome.editors.mass.memory import KeyMemory
from tl_rome.editors.mass.parts import MassParts
from tl_rome.editors.mass.requests import check_batch, check_each, fact_groups, shared_subject_warning
from tl_rome.editors.mass.values import check_stream, with_norm_anchor
from tl_rome.editors.rank_one.contexts import contexts_for
from tl_rome.editors.rank_one.shared_values import ValueFinder
from tl_rome.editors.rank_one.value import OptimisedValue, ToWrite, optimise_values, rewrite_of
from tl_rome.errors import InputError
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.memory import Halving, fitting_tokens
from tl_rome.sites import HookedModel, check_layer, is_hooked_transformer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class MassEditor(MassParts):
    """A mass editor for one model and some layers: call it with a model and requests to get one `BatchEdit` of all.

    It holds everything expensive, so that many batches share it; `MassEditor.prepare` makes one with defaults.
    """

    find_values: ValueFinder = optimise_values
    """Finds z; with `SharedValues()` editors that differ in layers below, spread or prior share the optimisation."""

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return f"<MassEditor, preset {self.config.preset}, layers {layers}, {len(self.contexts)} contexts>"

    @classmethod
    def prepare(
        cls,
        model: HookedModel,
        *,
        config: MassConfig | str = MEMIT,
        layers: Sequence[int] | None = None,
        covariances: Mapping[int, KeyCovariance] | None = None,
        contexts: Sequence[str] | Literal["recipe"] | None = None,
        seed: Seed = 0,
        progress: bool = True,
    ) -> "MassEditor":
        """An editor with every part that is not given chosen for the model.

        Args:
            model: Left as found.
            config: Preset or its name, which takes what suits the model (`model_defaults`), or a configuration of your
                own, which is kept.
            layers: Layers to edit; by default those known for the model and preset, else all of `covariances`, else
                some that end a quarter of the way up.
            covariances: Key statistics by layer, of those layers at least; by default those of `covariances_for`:
                shipped ones where they fit, else kept ones, else made from text that the model samples itself, which
                takes minutes.
            contexts: Prefixes, `""` first; by default sampled by the preset's recipe.
            seed: Seed of the generator that samples contexts and text.
            progress: Whether long work shows progress bars.

        Raises:
            InputError: If a layer is out of range, has no statistics, or theirs are of another BOS policy; or no preset
                has this name.
            ModelMismatchError: If statistics are of another model.
            UnsupportedModelError: If the output of the model's MLPs does not join the residual stream as it is.
        """
        is_hooked_transformer(model)
        config = mass_model_defaults(model, mass_preset_named(config) if isinstance(config, str) else config)
        found, choice = mass_layers(model, config, covariances) if layers is None else (layers, "given")
        layers = sorted({check_layer(model, layer) for layer in found})
        if not layers:
            raise InputError("no layers; give at least one to edit")
        if covariances is not None:
            check_covariances(model, layers, covariances)
        generator = torch.Generator().manual_seed(seed)
        prefixes, contexts_choice = contexts_for(model, config.recipe, contexts, generator=generator)
        if covariances is None:
            covariances = covariances_for(model, layers, seed=seed, progress=progress)
        chosen = {layer: covariances[layer] for layer in layers}
        return cls(chosen, prefixes, config, choice, seed, contexts_choice)

    def identity(self) -> dict[str, Any]:
        """What decides the edits, JSON-serialisable: two editors that make the same edits are equal here."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in ("preset", "depth")}
        return {
            "editor": type(self).__qualname__,
            "covariances": {str(layer): self.covariances[layer].digest for layer in self.layers},
            "contexts": list(self.contexts),
            "config": settings,
        }

    @overload
    def __call__(
        self, model: HookedModel, requests: Sequence[EditRequest] | EditRequest, *, progress: bool = False
    ) -> BatchEdit: ...

    @overload
    def __call__(
        self,
        model: HookedModel,
        requests: Sequence[EditRequest] | EditRequest,
        *,
        memory: KeyMemory,
        progress: bool = False,
    ) -> tuple[BatchEdit, KeyMemory]: ...

    def __call__(
        self,
        model: HookedModel,
        requests: Sequence[EditRequest] | EditRequest,
        *,
        memory: KeyMemory | None = None,
        progress: bool = False,
    ) -> BatchEdit | tuple[BatchEdit, KeyMemory]:
        """Make one edit of all requests; the model is left as found.

        Batch after batch in one model: begin with `KeyMemory.empty(model, editor.layers)`, apply each edit before the
        next batch is made, and hand on the memory that came with it. An edit that is undone is forgotten by going on
        with the memory from before it. Without a memory nothing is known of earlier batches.

        Args:
            model: The model that the editor was prepared for, with the edits of the memory applied.
            requests: The facts to write.
            memory: Keys of earlier batches, for a preset that keeps them.
            progress: Whether to show a progress bar over the optimisation.

        Returns:
            The edit; where a memory was given, the one that goes with it too.

        Raises:
            SubjectError: If a subject does not lie on whole tokens.
            InputError: If there is no request, requests repeat or contradict each other, a prompt is longer than the
                context, or a memory is given to a preset without one or is of other layers.
            ModelMismatchError: If statistics or memory are of another model.
            EditStateError: If the model is not as the memory's last batch left it.
            UnsupportedModelError: See `prepare`.
            NumericsError: If weights or losses are not finite, or a prior is singular.
        """
        asked = [requests] if isinstance(requests, EditRequest) else list(requests)
        self.check(model, asked)
        if memory is not None:
            if not self.config.memory:
                raise InputError(f"preset {self.config.preset!r} keeps no key memory; use memit_seq, or memory=True")
            memory.check(model, self.layers)
        groups = fact_groups(asked, self.config.merge_subjects)
        warning = None if self.config.merge_subjects else shared_subject_warning(asked)
        if warning is not None:
            _log.warning("the edit of %d facts: %s", len(asked), warning)
        warnings = () if warning is None else (warning,)
        with self._working(model):
            values = self._values(model, asked, groups, progress=progress)
            edit, keys = batch_edit(self, model, asked, groups, values, memory, warnings)
        if memory is None:
            return edit
        digests = {layer: edit.digests[MlpMatrix(layer)][1] for layer in self.layers}
        return edit, memory.grown(keys, digests)

    def check(self, model: HookedModel, requests: Sequence[EditRequest]) -> None:
        """Refuse, before any work, a batch that cannot be written.

        Args:
            model: Its tokenizer is asked.
            requests: As a call takes them.

        Raises:
            SubjectError: If subjects do not lie on whole tokens in some context; names the requests.
            InputError: If there is no request, requests repeat or contradict each other, or prompts are longer than
                the context.
        """
        check_batch(requests)
        check_each(requests, lambda fact: rewrite_of(model, fact, self.contexts, self.config.value_settings))

    def each(
        self,
        model: HookedModel,
        requests: Sequence[EditRequest],
        *,
        max_batch_tokens: Count | None = None,
        progress: bool = False,
    ) -> list[BatchEdit]:
        """Make an edit for each request as if alone, optimising many z at once; the model is left as found.

        Args:
            model: The model that the editor was prepared for.
            requests: The facts to write, each in a model of its own.
            max_batch_tokens: Bounds memory, see `optimise_values`.
            progress: Whether to show a progress bar over each optimisation.

        Returns:
            One edit per request, in order.

        Raises:
            TLRomeError: As a call with one request does.
        """
        for request in requests:
            check_batch([request])
        groups = fact_groups(requests, merge=False)
        with self._working(model):
            options = {"max_batch_tokens": max_batch_tokens, "progress": progress}
            found, seconds = self._values(model, requests, groups, **options)
            parts = zip(requests, found, strict=True)
            share = seconds / max(1, len(requests))
            return [batch_edit(self, model, [one], [(0,)], ([value], share), None, ())[0] for one, value in parts]

    def _working(self, model: HookedModel) -> Any:
        for layer in self.layers:
            self.covariances[layer].check(model, layer)
        return borrowed_for_gradients(model)

    def _values(
        self,
        model: HookedModel,
        requests: Sequence[EditRequest],
        groups: Sequence[Sequence[int]],
        *,
        max_batch_tokens: int | None = None,
        progress: bool,
    ) -> tuple[list[OptimisedValue], float]:
        """The value of each group, and the seconds that this took."""
        started, last = time.perf_counter(), self.layers[-1]
        check_stream(model, last)
        bound = max_batch_tokens or fitting_tokens(model, 1024, trained_from=last)
        options = {"max_batch_tokens": bound, "progress": progress}
        facts: list[ToWrite] = [
            requests[group[0]].fact if len(group) == 1 else tuple(requests[index].fact for index in group)
            for group in groups
        ]

        def find(part: Sequence[ToWrite]) -> list[OptimisedValue]:
            return self.find_values(model, last, part, self.contexts, self.config, **options)

        found = [value for _, values in Halving("facts to find values for")(facts, find) for value in values]
        return with_norm_anchor(found, self.config), time.perf_counter() - started
