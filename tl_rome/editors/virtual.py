"""Many edited models in one forward pass: every row of a batch has its own edit, and the weights stay as they are.

W_out + u v^T gives k W_out + (k . u) v for a key k. So the MLP's output of each row gets the (k . u) v of that row's
edit added, by hooks on the exact input and output of W_out, on every position that is run: with a key-value cache the
rows go on as they began. This equals writing the edit into the weights up to rounding (in bfloat16, the weights' own).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.editors.edit import Edit
from tl_rome.editors.update import DenseUpdate, RankOneUpdate
from tl_rome.errors import InputError
from tl_rome.generation import continue_texts
from tl_rome.scoring import TargetScores, score_targets
from tl_rome.sites import HookedModel, key_hook, value_hook, w_out
from tl_rome.storage import check_fingerprint

Rows = Int[Tensor, " batch"] | Sequence[int]
"""For each row of a batch the index of its edit, -1 for none."""


@dataclass(frozen=True, eq=False)
class _LayerUpdates:
    """What all edits add at one layer; the last edit is one that adds nothing, so that index -1 means no edit."""

    u: Float[Tensor, "edits d_mlp rank"]
    v: Float[Tensor, "edits rank d_model"]
    dense: dict[int, Float[Tensor, "d_mlp d_model"]]
    """By edit."""

    @classmethod
    def stack(cls, model: HookedModel, edits: Sequence[Edit], layer: int) -> "_LayerUpdates":
        weight = w_out(model, layer)
        kind = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        of_edit = [[update for update in edit.updates if update.layer == layer] for edit in edits]
        rank_one = [[update for update in updates if isinstance(update, RankOneUpdate)] for updates in of_edit]
        rank = max(map(len, rank_one))
        u = torch.zeros(len(edits) + 1, weight.shape[0], rank, **kind)
        v = torch.zeros(len(edits) + 1, rank, weight.shape[1], **kind)
        for edit, updates in enumerate(rank_one):
            for column, update in enumerate(updates):
                u[edit, :, column] = update.u.to(kind["dtype"])
                v[edit, column] = update.v.to(kind["dtype"])
        dense = {}
        for edit, updates in enumerate(of_edit):
            changes = [update.delta for update in updates if isinstance(update, DenseUpdate)]
            if changes:
                dense[edit] = torch.stack(changes).sum(0).to(kind["dtype"]).to(kind["device"])
        return cls(u, v, dense)

    def __call__(
        self, keys: Float[Tensor, "batch pos d_mlp"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the edits add to the outputs for these keys."""
        added = keys @ self.u[rows] @ self.v[rows]
        for edit, change in self.dense.items():
            chosen = rows == edit
            if bool(chosen.any()):
                added[chosen] += keys[chosen] @ change
        return added


class VirtualEdits:
    """A model's edits, ready to be given to the rows of any number of batches.

    Args:
        model: The model that the edits were made on; never written to.
        edits: Any number of edits of it, each of any number of layers.

    Raises:
        ModelMismatchError: If an edit is for another model.
        UnsupportedModelError: If the model cannot be edited at a layer.
    """

    def __init__(self, model: HookedModel, edits: Sequence[Edit]) -> None:
        for fingerprint in {edit.model for edit in edits}:
            check_fingerprint(model, fingerprint, "an edit")
        self.model, self.count = model, len(edits)
        layers = sorted({update.layer for edit in edits for update in edit.updates})
        self._updates = {layer: _LayerUpdates.stack(model, edits, layer) for layer in layers}

    @contextmanager
    def on(self, rows: Rows) -> Iterator[HookedModel]:
        """Inside, row i of every batch is run by the model with edit `rows[i]`.

        Raises:
            InputError: If an index is not that of an edit or -1; inside, if a batch has another number of rows.
        """
        index = torch.as_tensor(rows, dtype=torch.long)
        if not bool(((index >= -1) & (index < self.count)).all()):
            raise InputError(f"rows name edits {index.tolist()}; use 0 to {self.count - 1}, or -1 for no edit")
        with ExitStack() as stack:
            for layer, updates in self._updates.items():
                stack.enter_context(_added(self.model, layer, updates, index.to(updates.u.device)))
            yield self.model


@contextmanager
def _added(model: HookedModel, layer: int, updates: _LayerUpdates, rows: Int[Tensor, " batch"]) -> Iterator[None]:
    keys: list[Tensor] = []

    def note(key: Tensor, hook: object) -> None:
        if len(key) != len(rows):
            raise InputError(f"a batch of {len(key)} rows ran, but edits were given to {len(rows)} rows")
        keys[:] = [key]

    def add(output: Tensor) -> Tensor:
        return (output + updates(keys.pop().to(updates.u.dtype), rows)).to(output.dtype)

    with model.hooks(fwd_hooks=[(key_hook(layer), note)]), value_hook(model, layer, add):
        yield


@contextmanager
def virtual(model: HookedModel, edits: Sequence[Edit], rows: Rows | None = None) -> Iterator[HookedModel]:
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
    edits: Sequence[Edit],
    prompts: Sequence[str],
    targets: Sequence[str],
    rows: Rows,
    *,
    max_tokens: int = 4096,
) -> TargetScores:
    """Score each target after its prompt in the model with that row's edit; see `score_targets` and `virtual`.

    Raises:
        ModelMismatchError: If an edit is for another model.
        InputError: If there is not one row per prompt, or a text cannot be scored.
    """
    around, index = VirtualEdits(model, edits), _one_per_prompt(rows, prompts)
    return score_targets(
        model, prompts, targets, max_tokens=max_tokens, around=lambda chunk: around.on(index[list(chunk)])
    )


def continue_edited(
    model: HookedModel,
    edits: Sequence[Edit],
    prompts: Sequence[str],
    new_tokens: int,
    rows: Rows,
    *,
    generator: torch.Generator,
    top_k: int | None = 5,
) -> list[str]:
    """Continuations of texts, each by the model with that row's edit; see `continue_texts` and `virtual`.

    Raises:
        ModelMismatchError: If an edit is for another model.
        InputError: If there is not one row per prompt, or a text cannot be continued.
    """
    around, index = VirtualEdits(model, edits), _one_per_prompt(rows, prompts)
    return continue_texts(
        model,
        prompts,
        new_tokens,
        generator=generator,
        top_k=top_k,
        around=lambda chunk: around.on(index[list(chunk)]),
    )


def _one_per_prompt(rows: Rows, prompts: Sequence[str]) -> Int[Tensor, " batch"]:
    if len(rows) != len(prompts):
        raise InputError(f"{len(rows)} rows but {len(prompts)} prompts; give each prompt the index of its edit, or -1")
    return torch.as_tensor(rows, dtype=torch.long)
