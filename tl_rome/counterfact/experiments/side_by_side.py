"""The same prompts continued by the unedited model and by each edited one, for reading (figure 6, appendix G).

All of them run in one batch through virtual edits, and the models share their draws at each prompt, so two texts differ
only because of the edits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tl_rome.arguments import Count
from tl_rome.counterfact.evaluation.continuation import continuation
from tl_rome.counterfact.results import UNEDITED
from tl_rome.editors.edits.virtual import AnyEdit, VirtualEdits
from tl_rome.errors import InputError
from tl_rome.generation import generate_to_length
from tl_rome.grid import Grid
from tl_rome.running.borrowed import borrowed
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode

_SEEDS = 2**63 - 1


@dataclass(frozen=True)
class SideBySide:
    """Continuations by model; `print(texts.grid.markdown)` or `rich.print(texts.grid.table)`."""

    prompts: tuple[str, ...]
    """What was continued."""
    texts: Mapping[str, tuple[str, ...]]
    """A continuation of each prompt by model, the unedited one first; each begins with its space."""

    def __iter__(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Each prompt with its continuations by model."""
        for index, prompt in enumerate(self.prompts):
            yield prompt, {name: texts[index] for name, texts in self.texts.items()}

    @property
    def grid(self) -> Grid:
        """The texts as a table, each prompt over its continuations; line breaks are spaces."""
        rows = [
            (name, " ".join(text.split()))
            for prompt, texts in self
            for name, text in (("prompt", prompt), *texts.items())
        ]
        return Grid(
            f"{len(self.prompts)} prompts, continued by each model.", ("model", "text"), tuple(rows), prose=True
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"prompts": list(self.prompts), "texts": {name: list(texts) for name, texts in self.texts.items()}}


def continue_side_by_side(
    model: HookedModel,
    prompts: Sequence[str],
    edits: Mapping[str, AnyEdit],
    *,
    new_tokens: Count = 60,
    generator: torch.Generator,
    top_k: Count | None = 5,
    progress: bool = True,
) -> SideBySide:
    """Continue prompts with the unedited model and with each edit.

    Args:
        model: The model that the edits were made on; left as found.
        prompts: Texts to continue.
        edits: By name, in the order to show them; there may be none.
        new_tokens: Length of each continuation in tokens.
        generator: Source of a seed for each prompt, which all models share.
        top_k: Sample among this many most likely tokens; 1 is greedy, None is all.
        progress: Whether to show a progress bar over tokens.

    Raises:
        InputError: If there is no prompt, an edit is named "unedited", or a text would exceed the context.
        UnsupportedModelError: See `borrowed`.
        ModelMismatchError: If an edit is for another model.
    """
    prompts = tuple(prompts)
    if not prompts or new_tokens < 1:
        raise InputError(f"{len(prompts)} prompts and {new_tokens=}; give at least one prompt and one token")
    if UNEDITED in edits:
        raise InputError(f"{UNEDITED!r} is the name of the model without edits; give the edit another name")
    models = len(edits) + 1
    starts = [encode(model, prompt) for prompt in prompts]
    seeds = [int(torch.randint(_SEEDS, (), generator=generator)) for _ in prompts]
    draws = [torch.Generator().manual_seed(seed) for seed in seeds for _ in range(models)]
    rows = [index - 1 for _ in prompts for index in range(models)]
    length = max(map(len, starts)) + new_tokens
    with borrowed(model), VirtualEdits(model, list(edits.values())).on(rows):
        filled = generate_to_length(
            model,
            [start for start in starts for _ in range(models)],
            length,
            generator=draws,
            top_k=top_k,
            progress=progress,
        )
    texts = {
        name: tuple(
            continuation(model, filled[i * models + place, : len(start) + new_tokens], len(start))
            for i, start in enumerate(starts)
        )
        for place, name in enumerate((UNEDITED, *edits))
    }
    return SideBySide(prompts, texts)
