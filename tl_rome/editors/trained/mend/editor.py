"""MEND as an editor, and its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.trained.config import TrainingConfig
from tl_rome.editors.trained.editor import TrainedEditor
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.editors.trained.fit import fit
from tl_rome.editors.trained.mend.config import MEND_CF, MendConfig
from tl_rome.editors.trained.mend.network import MendNetwork
from tl_rome.editors.trained.passes.matrices import choose_matrices
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint


@dataclass(frozen=True, eq=False, repr=False)
class Mend(TrainedEditor):
    """MEND (Mitchell et al. 2022), trained by `train_mend`; edits are low-rank updates of the last blocks' MLPs."""

    kind: ClassVar[str] = "mend"
    settings: ClassVar[type[TrainingConfig]] = MendConfig

    @classmethod
    def empty_network(
        cls, config: MendConfig, shapes: Sequence[tuple[int, int]], tensors: Mapping[str, Tensor]
    ) -> MendNetwork:
        """See `TrainedEditor`."""
        return MendNetwork(shapes, config, torch.Generator())


def train_mend(
    model: HookedModel,
    examples: Sequence[TrainingExample],
    locality: Sequence[str],
    *,
    validation: Sequence[TrainingExample],
    generator: torch.Generator,
    config: MendConfig = MEND_CF,
    matrices: Sequence[MlpMatrix] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Mend:
    """Train MEND for a model, which is left as found.

    Args:
        model: A HookedTransformer or TransformerBridge; the editor works with both.
        examples: Edits to learn from: facts for MEND-CF, passages for MEND.
        locality: Unrelated texts that edits should leave alone; the last tenth is for validation.
        validation: Edits to choose the best network by, about other subjects.
        generator: Draws the network, and the order of everything.
        config: Settings.
        matrices: What is edited; by default all matrices of the MLPs of the last three blocks.
        checkpoint: A file that is written at each validation. If it is there, training goes on from it, with the same
            result as without interruption; one of a finished training gives its result at once.
        progress: Whether to show a progress bar over steps.

    Raises:
        InputError: If there are too few texts, a subject is in both sets, a text is longer than the context, or the
            checkpoint is of another training.
        UnsupportedModelError: If the model has no plain MLPs there, or its blocks cannot be run one by one.
        NumericsError: If no gradient of a step is finite.
        StorageError: If the checkpoint is damaged or cannot be written.
    """
    with borrowed_for_gradients(model):
        chosen = choose_matrices(model, matrices)
        shapes = [(int(weight.shape[0]), int(weight.shape[1])) for weight in (m.weight(model) for m in chosen)]
        network = MendNetwork(shapes, config, generator)
        log = fit(
            model,
            network,
            chosen,
            examples,
            locality,
            validation=validation,
            config=config,
            generator=generator,
            checkpoint=checkpoint,
            progress=progress,
        )
        return Mend(network, chosen, fingerprint(model), bool(model.cfg.default_prepend_bos), config, log)
