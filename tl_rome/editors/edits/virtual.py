"""Many edited models in one forward pass: every row of a batch has its own edit, and the weights stay as they are.

W_out + u v^T gives k W_out + (k . u) v for a key k. So the MLP's output of each row gets the (k . u) v of that row's
edit added, by hooks on the exact input and output of W_out, on every position that is run: with a key-value cache the
rows go on as they began. This equals writing the edit into the weights up to rounding (in bfloat16, the weights' own).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.arguments import Count, Range, Whole
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.edits.update import RankOneUpdate
from tl_rome.editors.edits.weights import check_weights
from tl_rome.errors import InputError
from tl_rome.generation import continue_texts
from tl_rome.running.borrowed import borrowed
from tl_rome.running.hooks import Hooks, hooked, value_hook
from tl_rome.running.interrupts import reliable
from tl_rome.scoring import TargetScores, score_targets
from tl_rome.sites import HookedModel, key_hook, w_out
from tl_rome.storage.files import check_fingerprint

AnyEdit = Edit | EditSequence

Rows = Int[Tensor, " batch"] | Sequence[Annotated[int, Range(-1, 2**63 - 1)]]
"""For each row of a batch the index of its edit, -1 for none."""


@dataclass(frozen=True, eq=False)
class _LayerUpdates:
    """What all edits add at one layer; the last edit is one that adds nothing, so that index -1 means no edit."""

    u: Float[Tensor, "edits d_mlp"]
    v: Float[Tensor, "edits d_model"]
    dense: dict[int, Float[Tensor, "d_mlp d_model"]]
    """By edit."""

    @classmethod
    def stack(cls, model: HookedModel, edits: Sequence[AnyEdit], layer: int) -> "_LayerUpdates":
        weight = w_out(model, layer)
        d_mlp, d_model = weight.shape
        options = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        found = cls(torch.zeros(len(edits) + 1, d_mlp, **options), torch.zeros(len(edits) + 1, d_model, **options), {})
        for index, edit in enumerate(edits):
            updates = [update for update in edit.updates if update.layer == layer]
            if len(updates) == 1 and isinstance(updates[0], RankOneUpdate):
                found.u[index], found.v[index] = updates[0].u, updates[0].v
            elif updates:
                change = sum((update.delta for update in updates), torch.zeros(d_mlp, d_model, dtype=torch.float64))
                found.dense[index] = change.to(options["dtype"]).to(options["device"])
        return found

    def __call__(
        self, keys: Float[Tensor, "batch pos d_mlp"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the edits add to the outputs for these keys."""
        added = (keys @ self.u[rows][:, :, None]) * self.v[rows][:, None]
        for edit, change in self.dense.items():
            chosen = rows == edit
            if bool(chosen.any()):
                added[chosen] += keys[chosen] @ change
        return added


class VirtualEdits:
    """A model's edits, ready to be given to the rows of any number of batches.

    Args:
        model: The model that the edits were made on; never written to.
        edits: Any number of edits of it, each of any number of layers; several composed ones count as one.

    Raises:
        ModelMismatchError: If an edit is for another model, or was made on other weights, see `EditSequence.apply`.
        EditStateError: If an edit is applied already.
        UnsupportedModelError: If the model cannot be edited at a layer.
    """

    def __init__(self, model: HookedModel, edits: Sequence[AnyEdit]) -> None:
        sequences = [edit.edits if isinstance(edit, EditSequence) else (edit,) for edit in edits]
        for fingerprint in {edit.model for parts in sequences for edit in parts}:
            check_fingerprint(model, fingerprint, "an edit")
        check_weights(model, sequences)
        self.model, self.count = model, len(edits)
        layers = sorted({update.layer for edit in edits for update in edit.updates})
        self._updates = {layer: _LayerUpdates.stack(model, edits, layer) for layer in layers}

    @reliable
    def on(self, rows: Rows) -> Iterator[HookedModel]:
        """Inside, row i of every batch is run by the model with edit `rows[i]`.

        Raises:
            InputError: If an index is not that of an edit or -1; inside, if a batch has another number of rows.
        """
        index = torch.as_tensor(rows, dtype=torch.long)
        if not bool(((index >= -1) & (index < self.count)).all()):
            raise InputError(f"rows name edits {index.tolist()}; use 0 to {self.count - 1}, or -1 for no edit")
        with hooked(self.model, [hook for layer in self._updates for hook in self._hooks(layer, index)]):
            yield self.model

    def _hooks(self, layer: int, index: Int[Tensor, " batch"]) -> Hooks:
        """The hooks that add what the edits change at one layer."""
        updates, keys = self._updates[layer], list[Tensor]()
        rows = index.to(updates.u.device)

        def note(key: Tensor, hook: object) -> None:
            if len(key) != len(rows):
                raise InputError(f"a batch of {len(key)} rows ran, but edits were given to {len(rows)} rows")
            keys[:] = [key]

        def add(output: Tensor) -> Tensor:
            return (output + updates(keys.pop().to(updates.u.dtype), rows)).to(output.dtype)

        return [(key_hook(layer), note), value_hook(self.model, layer, add)]


@reliable
def edited_rows(model: HookedModel, edits: Sequence[AnyEdit], rows: Rows | None = None) -> Iterator[HookedModel]:
    """Run differently edited models side by side: inside, row i of every batch has edit `rows[i]`.

    Generation included: `sample_tokens` keeps the order of rows. `score_edited` and `continue_edited` do so for texts
    of different lengths.

    Args:
        model: The model that the edits were made on; its weights are never touched.
        edits: The edits.
        rows: For each row of the batches the index of its edit, -1 for the unedited model; by default one row per edit.

    Raises:
        ModelMismatchError: If an edit is for another model.
        InputError: If `rows` names no edit; inside, if a batch has another number of rows.
    """
    with VirtualEdits(model, edits).on(range(len(edits)) if rows is None else rows):
        yield model


def score_edited(
    model: HookedModel,
    edits: Sequence[AnyEdit],
    prompts: Sequence[str],
    targets: Sequence[str],
    rows: Rows,
    *,
    max_batch_tokens: Count = 4096,
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
