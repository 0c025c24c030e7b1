"""From texts to a trained network: what MEND and KE share, whatever their networks are."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.editors.trained.config import TrainingConfig
from tl_rome.editors.trained.data.parts import subject_key
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.editors.trained.log import TrainingLog
from tl_rome.editors.trained.network import EditNetwork
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks
from tl_rome.editors.trained.state import generator_digest
from tl_rome.editors.trained.training import Lessons, Training
from tl_rome.errors import InputError
from tl_rome.running.blocks import frozen
from tl_rome.running.forward import device_of
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest, fingerprint
from tl_rome.tokens import encode

_HELD_OUT = 10
"""One in so many locality texts is kept for validation, as released."""


def fit(
    model: HookedModel,
    network: EditNetwork,
    matrices: Sequence[MlpMatrix],
    examples: Sequence[TrainingExample],
    locality: Sequence[str],
    *,
    validation: Sequence[TrainingExample],
    config: TrainingConfig,
    generator: torch.Generator,
    checkpoint: str | Path | None,
    progress: bool,
) -> TrainingLog:
    """Train a network, and leave it in its best state, without gradients.

    Args:
        model: Borrowed for gradients, and left as found.
        network: New; trained in place.
        matrices: What it edits, in order.
        examples: To learn from.
        locality: Unrelated texts; the last tenth is for validation.
        validation: Examples to choose the best network by, about other subjects.
        config: Settings.
        generator: Draws the order of everything.
        checkpoint: A file that is written at each validation, and gone on from if it is there.
        progress: Whether to show a progress bar over steps.

    Raises:
        InputError: If there are too few texts, a subject is in both sets, a text is longer than the context, or the
            checkpoint is of another training.
        StorageError: If the checkpoint is damaged or cannot be written.
        NumericsError: If no gradient of a step is finite.
        UnsupportedModelError: If the model's blocks cannot be run one by one.
    """
    _check(examples, validation, locality)
    for_validation = max(1, len(locality) // _HELD_OUT)
    parts = (examples, locality[:-for_validation]), (validation, locality[-for_validation:])
    learn, check = (_lessons(model, facts, texts) for facts, texts in parts)
    about = {
        "model": fingerprint(model),
        "prepend_bos": bool(model.cfg.default_prepend_bos),
        "matrices": [str(matrix) for matrix in matrices],
        "settings": {name: value for name, value in asdict(config).items() if name != "max_steps"},
        "generator": generator_digest(generator),
        "data": {
            "examples": len(examples),
            "validation": len(validation),
            "locality": len(locality),
            "digest": digest([_tokens(lessons) for lessons in (learn, check)]),
            "records": sorted({example.record for example in (*examples, *validation)} - {""}),
        },
    }
    network.to(device_of(model))
    with torch.enable_grad(), frozen(model):
        upper = UpperBlocks(model, min(matrix.layer for matrix in matrices))
        training = Training(upper, matrices, network, learn, check, config, generator)
        log = training.run(about=about, checkpoint=None if checkpoint is None else Path(checkpoint), progress=progress)
    network.eval().requires_grad_(False)
    return log


def _check(examples: Sequence[TrainingExample], validation: Sequence[TrainingExample], locality: Sequence[str]) -> None:
    if not examples or not validation or len(locality) < 2:
        raise InputError(
            f"{len(examples)} examples, {len(validation)} for validation and {len(locality)} locality texts are too "
            "few; give at least one, one and two"
        )
    subjects, others = ({subject_key(each.subject) for each in part} - {""} for part in (examples, validation))
    if shared := sorted(subjects & others):
        raise InputError(
            f"{len(shared)} subjects are in both the training and the validation examples, {shared[0]!r} among them; "
            "split them by subject"
        )


def _lessons(model: HookedModel, examples: Sequence[TrainingExample], locality: Sequence[str]) -> Lessons:
    return Lessons(
        [TargetText.of(model, each.prompt, each.target, each.joiner) for each in examples],
        [TargetText.of(model, each.outer_prompt, each.target, each.joiner) for each in examples],
        [encode(model, text, truncate=True) for text in locality],
    )


def _tokens(lessons: Lessons) -> list[list[list[int]]]:
    def plain(sequences: Sequence[Int[Tensor, " _"]]) -> list[list[int]]:
        return [sequence.tolist() for sequence in sequences]

    texts = [[text.prompt for text in part] for part in (lessons.inner, lessons.outer)]
    targets = [[text.target for text in part] for part in (lessons.inner, lessons.outer)]
    return [plain(part) for part in (*texts, *targets, lessons.locality)]
