"""Training, validation and check examples, and records kept for testing: none of them share a subject.

Two names are one subject if they differ in case or in white space alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from tl_rome.arguments import Count, Whole
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.errors import InputError

_NAMED = 5
"""Subjects that an error names."""


@dataclass(frozen=True)
class TrainingParts:
    """Examples that share no subject between parts."""

    train: tuple[TrainingExample, ...]
    """What is learnt from."""
    validation: tuple[TrainingExample, ...]
    """What decides when to stop."""
    check: tuple[TrainingExample, ...]
    """What training never sees, to show that it worked."""


def subject_key(subject: str) -> str:
    """A subject's name as names are compared: without regard to case, runs of white space as one space."""
    return " ".join(subject.split()).casefold()


def without_subjects(examples: Iterable[TrainingExample], kept: Iterable[str]) -> list[TrainingExample]:
    """The examples that are about none of some subjects.

    Args:
        examples: Any; passages have no subject, and stay.
        kept: Subjects that are kept for testing.
    """
    keys = {subject_key(subject) for subject in kept}
    return [example for example in examples if not example.subject or subject_key(example.subject) not in keys]


def refuse_subjects(examples: Iterable[TrainingExample], kept: Iterable[str]) -> None:
    """Refuse to train on a subject that is kept for testing.

    Args:
        examples: What would be trained on, validated with, or checked with.
        kept: Subjects of the records that the trained editor will be measured on.

    Raises:
        InputError: If an example is about one of them; names some.
    """
    keys = {subject_key(subject) for subject in kept}
    shared = sorted({example.subject for example in examples if subject_key(example.subject) in keys - {""}})
    if shared:
        more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
        raise InputError(
            f"training data share {len(shared)} subjects with the records kept for testing: "
            f"{', '.join(map(repr, shared[:_NAMED]))}{more}; leave them out with without_subjects"
        )


def split_examples(
    examples: Sequence[TrainingExample],
    *,
    train: Count = 2000,
    validation: Count = 64,
    check: Whole = 64,
    generator: torch.Generator,
) -> TrainingParts:
    """Divide examples at random; all of one subject, or of one text for passages, go to the same part.

    Args:
        examples: Any number; those that are not needed are left out.
        train: Examples to learn from, or as many as the other parts leave.
        validation: Examples to validate with.
        check: Examples for the check.
        generator: Source of the draws.

    Raises:
        InputError: If the examples are too few.
    """
    groups: dict[str, list[TrainingExample]] = defaultdict(list)
    for example in examples:
        groups[subject_key(example.subject) or f" {example.record}"].append(example)
    names = list(groups)
    waiting = [groups[names[place]] for place in torch.randperm(len(names), generator=generator).tolist()]
    parts: list[tuple[TrainingExample, ...]] = []
    for size, fewest in ((check, check), (validation, validation), (train, 1)):
        part: list[TrainingExample] = []
        while len(part) < size and waiting:
            part += waiting.pop()
        if len(part) < fewest:
            raise InputError(
                f"{len(examples)} examples of {len(names)} subjects or texts are too few to train on some, validate "
                f"with {validation} and check with {check}; give more, or ask for fewer"
            )
        parts.append(tuple(part[:size]))
    return TrainingParts(train=parts[2], validation=parts[1], check=parts[0])
