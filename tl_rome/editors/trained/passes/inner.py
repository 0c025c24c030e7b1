"""The inner pass: the gradient of each fact's loss with respect to each edited matrix, as inputs and output gradients.

The loss is the mean negative log-likelihood of the target's tokens, each predicted at its own position. Its gradient of
a matrix is the sum over positions of x_t (x) delta_t, with x_t its input and delta_t the gradient at its output. Rows
whose x or delta is exactly zero carry nothing and are left out: in the last block, that leaves the positions that
predict target tokens; below it, those up to the last of them; padding never.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from tl_rome.editors.trained.passes.products import OuterProducts
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks, stack
from tl_rome.running.forward import final_logits
from tl_rome.running.hooks import Hook, hooked
from tl_rome.running.matrices import MlpMatrix, input_hook, output_hook


def inner_gradients(
    upper: UpperBlocks,
    matrices: Sequence[MlpMatrix],
    texts: Sequence[TargetText],
    streams: Sequence[Float[Tensor, "_ d_model"]],
) -> tuple[list[OuterProducts], Float[Tensor, " edits"]]:
    """Gradients of many facts in one pass through the upper blocks, forward and backward.

    Args:
        upper: The blocks that have the matrices.
        matrices: Those to take gradients of.
        texts: One fact for each edit.
        streams: What enters the blocks at `TargetText.read` of each.

    Returns:
        For each matrix the gradients of all edits; and each one's loss, in nats.
    """
    watched = [_Watched() for _ in matrices]
    hooks = [hook for matrix, seen in zip(matrices, watched, strict=True) for hook in seen.hooks(upper, matrix)]
    with torch.enable_grad(), hooked(upper.model, hooks):
        losses, _ = target_losses(upper, texts, upper(stack(streams)))
        deltas = torch.autograd.grad(losses.sum(), [seen.added for seen in watched])
    gradients = []
    for seen, delta in zip(watched, deltas, strict=True):
        kept = (seen.input != 0).any(-1) & (delta != 0).any(-1)
        gradients.append(OuterProducts(seen.input[kept], delta[kept], kept.nonzero()[:, 0]))
    return gradients, losses.detach()


class _Watched:
    """One matrix during the pass: its input, and zeros added to its output, whose gradient is the output's."""

    input: Float[Tensor, "edits pos d_in"]
    added: Float[Tensor, "edits pos d_out"]

    def hooks(self, upper: UpperBlocks, matrix: MlpMatrix) -> list[Hook]:
        return [input_hook(upper.model, matrix, self._keep), output_hook(upper.model, matrix, self._add)]

    def _keep(self, value: Tensor) -> None:
        self.input = value.detach()

    def _add(self, output: Tensor) -> Tensor:
        self.added = torch.zeros_like(output, requires_grad=True)
        return output + self.added


def target_losses(
    upper: UpperBlocks, texts: Sequence[TargetText], resid: Float[Tensor, "edits pos d_model"]
) -> tuple[Float[Tensor, " edits"], list[bool]]:
    """Mean negative log-likelihood of a token of each target, in nats, and whether all of them are the most likely.

    Args:
        upper: The blocks that were run.
        texts: Prompts and targets.
        resid: The last block's output at `TargetText.read` of each.
    """
    sizes = [len(text.target) for text in texts]
    rows = torch.arange(len(texts)).repeat_interleave(torch.tensor(sizes))
    places = torch.cat([text.places for text in texts]).to(resid.device)
    targets = torch.cat([text.target for text in texts]).to(resid.device)
    logits = final_logits(upper.model, resid[rows.to(resid.device), places])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scored = cross_entropy(logits, targets, reduction="none").split(sizes)
    hit = (logits.argmax(-1) == targets).split(sizes)
    return torch.stack([tokens.mean() for tokens in scored]), [bool(tokens.all()) for tokens in hit]
