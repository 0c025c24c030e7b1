"""What many edits add at one matrix, kept so that the rows of a batch get theirs in a few products.

Updates of low rank are kept as their factors, all of the largest rank there is, others as whole matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tl_rome.editors.edits.update import LowRankUpdate, Update
from tl_rome.errors import InputError
from tl_rome.running.hooks import Hook
from tl_rome.running.matrices import MlpMatrix, addition_hooks
from tl_rome.running.packed import like_block
from tl_rome.sites import HookedModel

MAX_RANK = 64
"""Updates of larger rank are kept as whole matrices, so that one of them does not make all others as large."""


@dataclass(frozen=True, eq=False)
class StackedUpdates:
    """The updates of all edits at one matrix; the last edit is one that adds nothing, so that index -1 means none."""

    left: Float[Tensor, "edits d_in rank"]
    right: Float[Tensor, "edits d_out rank"]
    dense: Float[Tensor, "dense d_in d_out"]
    dense_edits: tuple[int, ...]
    """The edit that each dense one belongs to."""

    @classmethod
    def of(cls, model: HookedModel, place: MlpMatrix, edits: Sequence[Sequence[Update]]) -> "StackedUpdates":
        """Those of edits that are given by their updates; one that has several of this matrix has their sum."""
        like = like_block(model, place.layer)  # the matrix itself may be packed
        options = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        d_in, d_out = place.shape(model)
        factors: dict[int, tuple[Tensor, Tensor]] = {}
        dense: dict[int, Tensor] = {}
        for index, edit in enumerate(edits):
            updates = [update for update in edit if update.place == place]
            low = [update for update in updates if isinstance(update, LowRankUpdate)]
            rank = sum(update.rank for update in low)
            if low and len(low) == len(updates) and rank <= MAX_RANK and rank * (d_in + d_out) < d_in * d_out:
                factors[index] = torch.cat([x.left for x in low], 1), torch.cat([x.right for x in low], 1)
            elif updates:
                dense[index] = sum((update.delta for update in updates), torch.zeros(d_in, d_out, dtype=torch.float64))
        most = max((u.shape[1] for u, _ in factors.values()), default=0)
        left, right = (torch.zeros(len(edits) + 1, size, most, **options) for size in (d_in, d_out))
        for index, (u, v) in factors.items():
            left[index, :, : u.shape[1]], right[index, :, : v.shape[1]] = u, v
        matrices = torch.zeros(len(dense), d_in, d_out, **options)
        for matrix, change in zip(matrices, dense.values(), strict=True):
            matrix.copy_(change)
        return cls(left, right, matrices, tuple(dense))

    def hooks(self, model: HookedModel, place: MlpMatrix, rows: Int[Tensor, " batch"] | None = None) -> list[Hook]:
        """The hooks that add what the edits change at a matrix.

        Args:
            model: The model.
            place: The matrix.
            rows: For each row of every batch the index of its edit, -1 for none; by default that of the first edit.

        Raises:
            InputError: Inside, if a batch has another number of rows.
        """
        updates = None if rows is None else self.for_rows(rows)

        def added(value: Tensor) -> Tensor:
            if rows is not None and len(value) != len(rows):
                raise InputError(f"a batch of {len(value)} rows ran, but edits were given to {len(rows)} rows")
            of_rows = self.for_rows(torch.zeros(len(value), dtype=torch.long)) if updates is None else updates
            return of_rows(value.to(self.left.dtype))

        return addition_hooks(model, place, added)

    def for_rows(self, rows: Int[Tensor, " batch"]) -> "RowUpdates":
        """What to add to the rows of a batch; a row is given by the index of its edit, on the CPU."""
        device = self.left.device
        low = (self.left[rows.to(device)], self.right[rows.to(device)].mT) if self.left.shape[2] else None
        members = {n: (rows == edit).nonzero()[:, 0] for n, edit in enumerate(self.dense_edits)}
        members = {n: found for n, found in members.items() if len(found)}
        if not members:
            return RowUpdates(low, None, self.right.shape[1])
        sizes = torch.tensor([len(found) for found in members.values()])
        dense = _DenseRows(
            self.dense if len(members) == len(self.dense) else self.dense[list(members)],
            pad_sequence(list(members.values()), batch_first=True).to(device),
            torch.cat(list(members.values())).to(device),
            torch.arange(len(members)).repeat_interleave(sizes).to(device),
            torch.cat([torch.arange(len(found)) for found in members.values()]).to(device),
        )
        return RowUpdates(low, dense, self.right.shape[1])


@dataclass(frozen=True, eq=False)
class _DenseRows:
    """The rows of a batch that have whole matrices, in groups of one matrix each."""

    matrices: Float[Tensor, "groups d_in d_out"]
    table: Int[Tensor, "groups widest"]
    """Each group's rows, filled up with row 0."""
    chosen: Int[Tensor, " chosen"]
    """All these rows, group by group."""
    group: Int[Tensor, " chosen"]
    slot: Int[Tensor, " chosen"]
    """Where in the table each of them is."""

    def add_to(
        self, added: Float[Tensor, "batch pos d_out"], inputs: Float[Tensor, "batch pos d_in"]
    ) -> Float[Tensor, "batch pos d_out"]:
        products = inputs[self.table].flatten(1, 2) @ self.matrices
        products = products.unflatten(1, (self.table.shape[1], inputs.shape[1]))
        return added.index_add(0, self.chosen, products[self.group, self.slot])


@dataclass(frozen=True, eq=False)
class RowUpdates:
    """What the rows of one batch get added to a matrix's output, each by its own edit."""

    low: tuple[Float[Tensor, "batch d_in rank"], Float[Tensor, "batch rank d_out"]] | None
    dense: _DenseRows | None
    d_out: int

    def __call__(self, inputs: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_out"]:
        """What the edits add for these inputs of the matrix."""
        if self.low is None:
            added = inputs.new_zeros(*inputs.shape[:2], self.d_out)
        else:
            added = inputs @ self.low[0] @ self.low[1]
        return added if self.dense is None else self.dense.add_to(added, inputs)
