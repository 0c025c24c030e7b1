"""Many edited models in one forward pass: every row of a batch has its own edit, and the weights stay as they are.

W + left right^T gives x W + (x left) right^T for an input x. So the matrix's output of each row gets that of the row's
edit added, by hooks on the exact input and output of the matrix, on every position that is run: with a key-value cache
the rows go on as they began. This equals writing the edit into the weights up to rounding (in bfloat16, the weights'
own).
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.arguments import Count, Range, Whole
from tl_rome.editors.edits.batch_edit import BatchEdit
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.edits.stacked import StackedUpdates
from tl_rome.editors.edits.update import check_shape
from tl_rome.editors.edits.weights import check_weights
from tl_rome.errors import InputError
from tl_rome.generation import continue_texts
from tl_rome.running.borrowed import borrowed
from tl_rome.running.hooks import hooked
from tl_rome.running.interrupts import reliable
from tl_rome.scoring import TargetScores, score_targets
from tl_rome.sites import HookedModel, check_layer
from tl_rome.storage.files import check_fingerprint

AnyEdit = Edit | BatchEdit | EditSequence

Rows = Int[Tensor, " batch"] | Sequence[Annotated[int, Range(-1, 2**63 - 1)]]
"""For each row of a batch the index of its edit, -1 for none."""


class VirtualEdits:
    """A model's edits, ready to be given to the rows of any number of batches.

    Args:
        model: The model that the edits were made on; never written to.
        edits: Any number of edits of it, each of any number of matrices; several composed ones count as one.
        same_weights: Whether the model must have the weights that the edits were made on. A quantised copy has others:
            without this, only sizes are compared.

    Raises:
        ModelMismatchError: If an edit is for another model, or was made on other weights, see `EditSequence.apply`; or
            is of another size.
        EditStateError: If an edit is applied already.
        UnsupportedModelError: If the model cannot be edited at a layer.
    """

    def __init__(self, model: HookedModel, edits: Sequence[AnyEdit], *, same_weights: bool = True) -> None:
        sequences = [edit.edits if isinstance(edit, EditSequence) else (edit,) for edit in edits]
        updates = [edit.updates for edit in edits]
        if same_weights:
            for fingerprint in {edit.model for parts in sequences for edit in parts}:
                check_fingerprint(model, fingerprint, "an edit")
            check_weights(model, sequences)
        for update in (update for edit in updates for update in edit):
            check_layer(model, update.place.layer)
            check_shape(update, update.place.shape(model))
        self.model, self.count = model, len(edits)
        places = sorted({update.place for edit in updates for update in edit})
        self._updates = {place: StackedUpdates.of(model, place, updates) for place in places}

    @reliable
    def on(self, rows: Rows) -> Iterator[HookedModel]:
        """Inside, row i of every batch is run by the model with edit `rows[i]`.

        Raises:
            InputError: If an index is not that of an edit or -1; inside, if a batch has another number of rows.
        """
        index = torch.as_tensor(rows, dtype=torch.long)
        if not bool(((index >= -1) & (index < self.count)).all()):
            raise InputError(f"rows name edits {index.tolist()}; use 0 to {self.count - 1}, or -1 for no edit")
        places = self._updates.items()
        with hooked(self.model, [hook for place, each in places for hook in each.hooks(self.model, place, index)]):
            yield self.model


@reliable
def edited_rows(
    model: HookedModel, edits: Sequence[AnyEdit], rows: Rows | None = None, *, same_weights: bool = True
) -> Iterator[HookedModel]:
    """Run differently edited models side by side: inside, row i of every batch has edit `rows[i]`.

    Generation included: `sample_tokens` keeps the order of rows. `score_edited` and `continue_edited` do so for texts
    of different lengths.

    Args:
        model: The model that the edits were made on; its weights are never touched.
        edits: The edits.
        rows: For each row of the batches the index of its edit, -1 for the unedited model; by default one row per edit.
        same_weights: False runs edits on a model with other weights, such as a quantised copy of the one that they were
            made on; nothing but sizes is compared then, and what the edit's receipt says was measured on the other.

    Raises:
        ModelMismatchError: If an edit is for another model.
        InputError: If `rows` names no edit; inside, if a batch has another number of rows.
    """
    with VirtualEdits(model, edits, same_weights=same_weights).on(range(len(edits)) if rows is None else rows):
        yield model


def score_edited(
    model: HookedModel,
    edits: Sequence[AnyEdit],
    prompts: Sequence[str],
    targets: Sequence[str],
    rows: Rows,
    *,
    max_batch_tokens: Count | None = None,
) -> TargetScores:
    """Score each target after its prompt in the model with that row's edit; see `score_targets` and `edited_rows`.

    Raises:
        ModelMismatchError: If an edit is for another model.
        InputError: If there is not one row per prompt, or a text cannot be scored.
    """
    edited, index = VirtualEdits(model, edits), _one_per_prompt(rows, prompts)
    with borrowed(model):
        return score_targets(
            model,
            prompts,
            targets,
            max_batch_tokens=max_batch_tokens,
            row_context=lambda chunk: edited.on(index[list(chunk)]),
        )


def continue_edited(
    model: HookedModel,
    edits: Sequence[AnyEdit],
    prompts: Sequence[str],
    new_tokens: Whole,
    rows: Rows,
    *,
    generator: torch.Generator,
    top_k: Count | None = 5,
) -> list[str]:
    """Continuations of texts, each by the model with that row's edit; see `continue_texts` and `edited_rows`.

    Raises:
        ModelMismatchError: If an edit is for another model.
        InputError: If there is not one row per prompt, or a text cannot be continued.
    """
    edited, index = VirtualEdits(model, edits), _one_per_prompt(rows, prompts)
    with borrowed(model):
        return continue_texts(
            model,
            prompts,
            new_tokens,
            generator=generator,
            top_k=top_k,
            row_context=lambda chunk: edited.on(index[list(chunk)]),
        )


def _one_per_prompt(rows: Rows, prompts: Sequence[str]) -> Int[Tensor, " batch"]:
    if len(rows) != len(prompts):
        raise InputError(f"{len(rows)} rows but {len(prompts)} prompts; give each prompt the index of its edit, or -1")
    return torch.as_tensor(rows, dtype=torch.long)
