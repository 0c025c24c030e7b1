"""The edit of knowledge neurons: their rows of W_out lose the old object's embedding and gain the new one's.

    row <- row - a e(old) + b sum_j e(new_j)        for every neuron that the true object is attributed to

e are rows of the token embedding W_E, the input one, as the checkpoint stores it: without the factor that Gemma puts on
it. Norm-matched, both embeddings are first scaled to the row's own length (Dai et al.'s code). All rows of a layer
change along one direction v: the edit is of rank one there, s v^T, with s 1 at its neurons and 0 elsewhere, or the
lengths of their rows. Nothing is trained or estimated.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.finish import finish_edit
from tl_rome.editors.edits.receipts.outcome import probe_model
from tl_rome.editors.edits.receipts.receipt import UpdateFigures
from tl_rome.editors.edits.update import LowRankUpdate
from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.knowledge_neurons.attribution import attribute_neurons
from tl_rome.editors.knowledge_neurons.presets import KN, KN_CORRECTED, KnowledgeNeuronsConfig
from tl_rome.editors.knowledge_neurons.scores import Neuron, NeuronScores, NeuronSite, shared_neurons
from tl_rome.errors import InputError
from tl_rome.facts import EditRequest, Fact, check_requests
from tl_rome.running.matrices import MlpMatrix, mlp_matrices
from tl_rome.sites import HookedModel, token_embeddings
from tl_rome.tokens import encode_target, token_labels

_log = logging.getLogger(__name__)
_MANY = 0.01
"""Share of all neurons above which an attribution has picked out nothing."""
_REMEDY = "KN_CORRECTED, another threshold or new_factor, or another editor: this one rarely writes a fact"


@dataclass(frozen=True, eq=False)
class KnowledgeNeurons:
    """The editor of knowledge neurons: call it with a model and a request to get an `Edit`.

    Raises:
        InputError: If there are paraphrases that the settings do not use, or one has not exactly one `{}`.
    """

    config: KnowledgeNeuronsConfig = KN
    """Settings."""
    paraphrases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Other templates of the same relation, each with `{}` for the subject, by the request's template. Prompts that the
    edit is evaluated on do not belong here."""

    def __post_init__(self) -> None:
        if self.paraphrases and not self.config.refine:
            raise InputError(
                f"preset {self.config.preset!r} reads the request's own prompt alone; leave out paraphrases, or use "
                f"{KN_CORRECTED.preset!r}"
            )
        for templates in self.paraphrases.values():
            for template in templates:
                Fact(template, "a subject")

    @classmethod
    def prepare(
        cls,
        model: HookedModel,
        *,
        config: KnowledgeNeuronsConfig = KN,
        paraphrases: Mapping[str, Sequence[str]] | None = None,
    ) -> "KnowledgeNeurons":
        """An editor for a model, which needs plain MLPs in all layers.

        Args:
            model: A HookedTransformer or TransformerBridge.
            config: Settings.
            paraphrases: See the field of this name.

        Raises:
            InputError: As the class does.
            UnsupportedModelError: If a layer has no plain MLP.
        """
        for layer in range(model.cfg.n_layers):
            mlp_matrices(model, layer)
        return cls(config, paraphrases or {})

    def identity(self) -> dict[str, Any]:
        """What decides the edits, JSON-serialisable; not the preset's name."""
        paraphrases = {template: list(others) for template, others in self.paraphrases.items()}
        return {"editor": type(self).__qualname__, "config": self.config.identity(), "paraphrases": paraphrases}

    def __call__(self, model: HookedModel, request: EditRequest, *, progress: bool = False) -> Edit:
        """Make an edit; the model is left as found.

        Args:
            model: A HookedTransformer or TransformerBridge.
            request: The fact to write, with `target_true`: its neurons are those of the true object.
            progress: Whether to show a progress bar over rows of each prompt.

        Raises:
            InputError: If the request has no `target_true`, or a prompt is longer than the context.
            UnsupportedModelError: If a layer has no plain MLP, or the model's blocks cannot be run one by one.
            NumericsError: If a score or an edited weight is not finite.
        """
        check_requests([request])
        if request.target_true is None:
            raise InputError(
                f"the request for {request.fact.prompt!r} has no target_true, and knowledge neurons are those of the "
                "true object; give EditRequest(..., target_true=...)"
            )
        started = time.perf_counter()
        with borrowed_for_gradients(model):
            several = [self._attribute(model, fact, progress) for fact in self._facts(request)]
            neurons = shared_neurons(several, self.config.threshold, self.config.sharing)
            old, new = self._old(model, request, several[0]), self._tokens(model, request.fact)
            updates = self._updates(model, neurons, old, new)
            return finish_edit(
                model,
                request,
                updates,
                self._figures(several, neurons),
                before=probe_model(model, request),
                provenance=self._provenance(model, several, neurons, old, new),
                started=started,
                remedy=_REMEDY,
                cautions=self._cautions(request, neurons, several[0].scores.numel()),
            )

    def _facts(self, request: EditRequest) -> list[Fact]:
        """The true fact, as the request asks for it and in other words."""
        others = self.paraphrases.get(request.template, ())
        own = Fact(request.template, request.subject, request.target_true, request.joiner)
        return [own, *(Fact(template, request.subject, request.target_true) for template in others)]

    def _attribute(self, model: HookedModel, fact: Fact, progress: bool) -> NeuronScores:
        options: dict[str, Any] = {"points": self.config.points, "steps": self.config.steps, "progress": progress}
        return attribute_neurons(model, fact.prompt, self._tokens(model, fact), site=self._site(model), **options)

    def _site(self, model: HookedModel) -> NeuronSite:
        gated = len(mlp_matrices(model, 0)) > len(("W_in", "W_out"))
        return self.config.site or ("post" if gated else "pre")

    def _tokens(self, model: HookedModel, fact: Fact) -> Int[Tensor, " target"]:
        """The tokens of a fact's object."""
        assert fact.target is not None
        if self.config.leading_space:
            return encode_target(model, fact.target, fact.prompt, fact.joiner)
        return encode_target(model, fact.target, joiner="")

    def _old(self, model: HookedModel, request: EditRequest, scores: NeuronScores) -> Int[Tensor, " old"]:
        """The tokens whose embeddings are subtracted."""
        if self.config.old == "predicted":
            return torch.tensor([scores.predicted])
        return self._tokens(model, self._facts(request)[0])

    def _updates(
        self,
        model: HookedModel,
        neurons: Sequence[Neuron],
        old: Int[Tensor, " old"],
        new: Int[Tensor, " new"],
    ) -> list[LowRankUpdate]:
        """One update of rank one for each layer with neurons, lower layers first."""
        old_value, new_value = (token_embeddings(model, tokens).sum(0) for tokens in (old, new))
        if self.config.norm_matched:
            old_value, new_value = old_value / old_value.norm(), new_value / new_value.norm()
        value = self.config.new_factor * new_value - self.config.old_factor * old_value
        updates = []
        for layer in sorted({neuron.layer for neuron in neurons}):
            weight = MlpMatrix(layer).weight(model).detach()
            rows = [neuron.neuron for neuron in neurons if neuron.layer == layer]
            chosen = torch.zeros(len(weight), dtype=torch.float64)
            chosen[rows] = weight[rows].cpu().double().norm(dim=1) if self.config.norm_matched else 1.0
            updates.append(LowRankUpdate.rank_one(layer, chosen, value))
        return updates

    def _figures(self, several: Sequence[NeuronScores], neurons: Sequence[Neuron]) -> UpdateFigures:
        site = several[0].site
        shared = f", shared by {len(several)} prompts" if len(several) > 1 else ""
        return UpdateFigures(
            preset=self.config.preset,
            departures=self.config.departures,
            layer_choice=f"those of {_count(neurons)}, {site}-activation{shared}",
            contexts_choice="the prompt alone",
        )

    def _provenance(
        self,
        model: HookedModel,
        several: Sequence[NeuronScores],
        neurons: Sequence[Neuron],
        old: Int[Tensor, " old"],
        new: Int[Tensor, " new"],
    ) -> dict[str, Any]:
        counts = Counter(neuron.layer for neuron in neurons)
        return {
            "editor": type(self).__name__,
            "config": asdict(self.config),
            "prepend_bos": bool(model.cfg.default_prepend_bos),
            "site": several[0].site,
            "prompts": [scores.prompt for scores in several],
            "answer": list(several[0].answer),
            "prob_answer": several[0].prob,
            "neurons": len(neurons),
            "neurons_by_layer": {str(layer): counts[layer] for layer in sorted(counts)},
            "subtracted": list(token_labels(model, old)),
            "added": list(token_labels(model, new)),
        }

    def _cautions(self, request: EditRequest, neurons: Sequence[Neuron], total: int) -> list[str]:
        """What is odd about the number of neurons; logged too."""
        cautions = []
        if not neurons:
            cautions.append("no neuron was chosen, so that nothing changes; try a lower threshold or sharing")
        if len(neurons) > _MANY * total:
            share = f"{len(neurons)} of {total} neurons were chosen"
            cautions.append(f"{share}: the attribution picks out nothing; try a higher threshold")
        for caution in cautions:
            _log.warning("the edit %r -> %r: %s", request.fact.prompt, request.target_new, caution)
        return cautions


def _count(neurons: Sequence[Neuron]) -> str:
    return f"{len(neurons)} neuron{'' if len(neurons) == 1 else 's'}"
