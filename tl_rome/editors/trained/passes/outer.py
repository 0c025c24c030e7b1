"""The outer pass: many differently edited models in one batch, differentiable in their edits.

W + sum of left (x) right gives x W + sum of (x . left) right for an input x. So an edit is added to the outputs of its
own rows, and the weights stay as they are. What is learnt from are two losses (MEND, eq. 4 and 5; KE for GPT uses the
same): the mean negative log-likelihood of the target's tokens after the outer prompt, and the divergence of the edited
from the unedited model on unrelated text, KL(unedited || edited) over the whole vocabulary, averaged over positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tl_rome.editors.trained.passes.inner import target_losses
from tl_rome.editors.trained.passes.products import OuterProducts
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks, stack
from tl_rome.running.forward import final_logits
from tl_rome.running.hooks import Hook, hooked
from tl_rome.running.matrices import MlpMatrix, addition_hooks

_MOST_LOGITS = 1 << 25
"""Logits that are held at once, in several copies."""


@dataclass(frozen=True, eq=False)
class EditedModels:
    """As many edited models as a batch has edits, seen from the lowest edited block up."""

    upper: UpperBlocks
    """The blocks that have the matrices."""
    matrices: Sequence[MlpMatrix]
    """The edited ones."""
    changes: Sequence[OuterProducts]
    """What is added to each."""
    count: int
    """Number of edits."""

    def run(
        self, streams: Sequence[Float[Tensor, "_ d_model"]], edits: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows pos d_model"]:
        """The last block's output for each text in the model with its row's edit."""
        hooks: list[Hook] = []
        for matrix, change in zip(self.matrices, self.changes, strict=True):
            left, right = change.padded(self.count)
            hooks += _low_rank_hooks(self.upper, matrix, left[edits], right[edits])
        with hooked(self.upper.model, hooks):
            return self.upper(stack(streams))

    def edit_losses(
        self, texts: Sequence[TargetText], streams: Sequence[Float[Tensor, "_ d_model"]]
    ) -> tuple[Float[Tensor, " edits"], list[bool]]:
        """l_edit: see `target_losses`; one text for each edit."""
        return target_losses(self.upper, texts, self.run(streams, self._each(1)))

    def locality_losses(
        self,
        streams: Sequence[Float[Tensor, "_ d_model"]],
        positions: Sequence[Int[Tensor, " _"]],
    ) -> Float[Tensor, " edits"]:
        """l_loc, in nats.

        Args:
            streams: Of one or several texts for each edit, those of one behind each other.
            positions: Where each text is compared.
        """
        sizes = [len(chosen) for chosen in positions]
        rows = torch.arange(len(streams)).repeat_interleave(torch.tensor(sizes))
        chosen = torch.cat(list(positions))
        with torch.no_grad():
            before = self.upper(stack(streams))[rows, chosen]
        after = self.run(streams, self._each(len(streams) // self.count))[rows, chosen]
        texts = torch.stack([found.mean() for found in self._divergence(before, after).split(sizes)])
        return texts.reshape(self.count, -1).mean(1)

    def _each(self, times: int) -> Int[Tensor, " rows"]:
        return torch.arange(self.count).repeat_interleave(times)

    def _divergence(
        self, before: Float[Tensor, "places d_model"], after: Float[Tensor, "places d_model"]
    ) -> Float[Tensor, " places"]:
        """KL at each place, from the last block's outputs; the logits of many places are in memory part by part."""
        size = max(1, _MOST_LOGITS // self.upper.model.cfg.d_vocab)
        parts = list(zip(before.split(size), after.split(size), strict=True))
        if len(parts) == 1:
            return self._divergence_at_once(before, after)
        once = partial(checkpoint, self._divergence_at_once, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([once(*part) for part in parts])

    def _divergence_at_once(
        self, before: Float[Tensor, "places d_model"], after: Float[Tensor, "places d_model"]
    ) -> Float[Tensor, " places"]:
        """With the fewest passes over the vocabulary; no gradient goes into `before`."""
        with torch.no_grad():
            expected = self._logits(before)
            probs = expected.softmax(-1)
        found = self._logits(after)
        return torch.linalg.vecdot(probs, expected - found) - expected.logsumexp(-1) + found.logsumexp(-1)

    def _logits(self, resid: Float[Tensor, "places d_model"]) -> Float[Tensor, "places d_vocab"]:
        logits = final_logits(self.upper.model, resid)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _low_rank_hooks(
    upper: UpperBlocks,
    matrix: MlpMatrix,
    left: Float[Tensor, "rows rank d_in"],
    right: Float[Tensor, "rows rank d_out"],
) -> list[Hook]:
    """Hooks that add an edit to a matrix for each row."""

    def added(inputs: Float[Tensor, "rows pos d_in"]) -> Float[Tensor, "rows pos d_out"]:
        return (inputs.to(left.dtype) @ left.mT) @ right

    return addition_hooks(upper.model, matrix, added)
