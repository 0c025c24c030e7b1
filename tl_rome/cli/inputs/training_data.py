"""The options that say what an editor is trained on, and the examples and texts that they name."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tl_rome.cli import console
from tl_rome.cli.inputs.texts import TextFiles
from tl_rome.errors import InputError

if TYPE_CHECKING:
    import torch

    from tl_rome.editors.trained.examples import TrainingExample
    from tl_rome.sites import HookedModel

_VALIDATION = 64
"""Most examples to validate with; where there are few, a fifth of them."""
_TEXTS_PER_EXAMPLE, _FEWEST_TEXTS, _MOST_TEXTS = 0.5, 20, 1000
"""Locality texts, of which a tenth is for validation."""
_FEWEST_WORDS = 50
"""Lines with no more words than this are headings and the like; the model's own samples have none."""


class Method(StrEnum):
    """What can be trained, as the paper's table names it."""

    mend_cf = "mend-cf"
    mend = "mend"
    ke_cf = "ke-cf"
    ke = "ke"

    @property
    def learns_facts(self) -> bool:
        """Whether it learns from COUNTERFACT-style records, and not from passages of text."""
        return self.value.endswith("-cf")


@dataclass(frozen=True)
class TrainingSet:
    """What one training is given."""

    examples: "Sequence[TrainingExample]"
    """To learn from."""
    validation: "Sequence[TrainingExample]"
    """About other subjects, or from other texts."""
    locality: Sequence[str]
    """Unrelated texts."""


@dataclass(frozen=True)
class TrainingSource:
    """Where the examples of a method come from, as the options say."""

    method: Method
    """What is trained."""
    relations: Path | None
    """ParaRel's folder; None takes the facts that ship with the package."""
    records: str | None
    """Records in place of those compiled from relations."""
    texts: TextFiles | None
    """Text for passages and locality; None samples it from the model."""
    excluded: tuple[str, ...]
    """Records that are kept for testing; none are those that ship with the package."""
    examples: int
    """To learn from, at most."""

    def __post_init__(self) -> None:
        if not self.method.learns_facts and (self.relations or self.records or self.excluded):
            what = "--relations, --records and --exclude"
            raise InputError(f"{self.method} learns from passages of text, which have no subjects; leave out {what}")
        if self.relations is not None and self.records is not None:
            raise InputError("--relations and --records are both given; training records come from one of them")

    def load(self, model: "HookedModel", generator: "torch.Generator") -> TrainingSet:
        """Make the examples; always the same ones for the same generator.

        Raises:
            TLRomeError: If a source cannot be read, does not give enough, or shares a subject with what is kept.
        """
        from tl_rome.editors.trained.data.locality import locality_texts
        from tl_rome.editors.trained.data.parts import split_examples

        lines = self._lines(model, generator)
        made = self._facts(generator) if self.method.learns_facts else self._passages(model, lines, generator)
        validation = min(_VALIDATION, len(made) // 5)
        parts = split_examples(made, train=self.examples, validation=validation, check=0, generator=generator)
        wanted = min(_MOST_TEXTS, max(_FEWEST_TEXTS, int(_TEXTS_PER_EXAMPLE * len(parts.train))))
        longer_than = 0 if self.texts is None else _FEWEST_WORDS
        locality = locality_texts(model, lines, wanted, generator=generator, more_words_than=longer_than)
        return TrainingSet(parts.train, parts.validation, locality)

    def _lines(self, model: "HookedModel", generator: "torch.Generator") -> list[str]:
        from tl_rome.editors.trained.data.samples import sampled_texts

        if self.texts is not None:
            return list(self.texts)
        wanted = max(_FEWEST_TEXTS, min(_MOST_TEXTS, self.examples) // 4)
        return sampled_texts(model, wanted, generator=generator, progress=console.shows_progress())

    def _facts(self, generator: "torch.Generator") -> "Sequence[TrainingExample]":
        from tl_rome.counterfact import load_counterfact, load_pararel
        from tl_rome.counterfact.dataset.load import SAMPLE
        from tl_rome.counterfact.dataset.sample import load_sample_relations
        from tl_rome.counterfact.dataset.training import record_examples, training_records
        from tl_rome.editors.trained.data.parts import refuse_subjects

        tested = [record for name in self.excluded or (SAMPLE,) for record in load_counterfact(name)]
        kept = [record.requested_rewrite.subject for record in tested]
        if self.records is not None:
            records = load_counterfact(self.records)
        else:
            relations = load_sample_relations() if self.relations is None else load_pararel(self.relations)
            records = training_records(relations, self.examples + _VALIDATION, generator=generator, kept=kept)
        examples = record_examples(records, generator=generator)
        refuse_subjects(examples, kept)
        return examples

    def _passages(
        self, model: "HookedModel", lines: Sequence[str], generator: "torch.Generator"
    ) -> "Sequence[TrainingExample]":
        from tl_rome.editors.trained.data.passages import passage_examples

        wanted = self.examples + min(_VALIDATION, -(-self.examples // 4))
        made = passage_examples(model, lines, wanted, generator=generator, progress=console.shows_progress())
        for reason, times in made.left_out.items():
            console.say(f"left out {times} times: {reason}")
        return made.examples
