"""KE as an editor, and its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.trained.config import TrainingConfig
from tl_rome.editors.trained.editor import TrainedEditor
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.editors.trained.fit import fit
from tl_rome.editors.trained.ke.config import KE_CF, KeConfig
from tl_rome.editors.trained.ke.network import KeNetwork
from tl_rome.editors.trained.passes.matrices import choose_matrices
from tl_rome.editors.trained.passes.products import OuterProducts
from tl_rome.editors.trained.passes.upper import RememberedTexts
from tl_rome.facts import EditRequest
from tl_rome.running.forward import device_of
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint


@dataclass(frozen=True, eq=False, repr=False)
class Ke(TrainedEditor):
    """KE for GPT (De Cao et al. 2021; Mitchell et al. 2022), trained by `train_ke`.

    Its files are without the model's token embeddings, unless it was trained with embeddings of its own.
    """

    kind: ClassVar[str] = "ke"
    settings: ClassVar[type[TrainingConfig]] = KeConfig

    @classmethod
    def empty_network(
        cls, config: KeConfig, shapes: Sequence[tuple[int, int]], tensors: Mapping[str, Tensor]
    ) -> KeNetwork:
        """See `TrainedEditor`."""
        own = tensors["embedding"] if config.own_embedding else None
        return KeNetwork(shapes, tensors["lstm.weight_ih_l0"].shape[1], config, torch.Generator(), own)

    def changes(
        self, texts: RememberedTexts, requests: Sequence[EditRequest]
    ) -> tuple[Float[Tensor, " edits"], list[OuterProducts]]:
        """See `TrainedEditor`."""
        network = cast(KeNetwork, self.network).reading(texts.upper.model)
        return TrainedEditor.changes(replace(self, network=network), texts, requests)


def train_ke(
    model: HookedModel,
    examples: Sequence[TrainingExample],
    locality: Sequence[str],
    *,
    validation: Sequence[TrainingExample],
    generator: torch.Generator,
    config: KeConfig = KE_CF,
    matrices: Sequence[MlpMatrix] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Ke:
    """Train KE for a model, which is left as found; see `convergence` on whether it came to an end of learning.

    Args:
        model: A HookedTransformer or TransformerBridge; the editor works with both.
        examples: Edits to learn from: facts for KE-CF, passages for KE.
        locality: Unrelated texts that edits should leave alone; the last tenth is for validation.
        validation: Edits to choose the best network by, about other subjects.
        generator: Draws the network, and the order of everything.
        config: Settings.
        matrices: What is edited; by default all matrices of the MLPs of the last three blocks.
        checkpoint: As in `train_mend`.
        progress: Whether to show a progress bar over steps.

    Raises:
        TLRomeError: As `train_mend` does.
    """
    with borrowed_for_gradients(model):
        chosen = choose_matrices(model, matrices)
        shapes = [(int(weight.shape[0]), int(weight.shape[1])) for weight in (m.weight(model) for m in chosen)]
        network = KeNetwork(shapes, model.cfg.d_model, config, generator, _embeddings(model, config))
        log = fit(
            model,
            network.reading(model),
            chosen,
            examples,
            locality,
            validation=validation,
            config=config,
            generator=generator,
            checkpoint=checkpoint,
            progress=progress,
        )
        return Ke(network, chosen, fingerprint(model), bool(model.cfg.default_prepend_bos), config, log)


def _embeddings(model: HookedModel, config: KeConfig) -> Float[Tensor, "d_vocab d_model"] | None:
    """All token embeddings as the first block gets them, where the network is to have its own."""
    if not config.own_embedding:
        return None
    return model.embed(torch.arange(model.cfg.d_vocab, device=device_of(model))[None])[0].detach()
