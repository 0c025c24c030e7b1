"""What an output direction of an MLP says in tokens: the logit lens on a direction.

    s(v) = (logits(ln_final(v)) - logits(ln_final(-v))) / 2

The half difference keeps what depends on v and drops the biases of norm and unembedding. A direction has no sign of its
own, so both ends are given. In early layers the model still works on what an edit writes there: its object need not be
among these tokens, see `likely`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.running.forward import device_of, final_logits
from tl_rome.running.matrices import MlpMatrix
from tl_rome.sites import HookedModel
from tl_rome.tokens import token_labels


@torch.no_grad()
def direction_tokens(
    model: HookedModel, place: MlpMatrix, direction: Float[Tensor, " d_model"], count: int = 5
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens that a W_out's output direction raises most, and those that it lowers most.

    Args:
        model: Left as found.
        place: A W_out, for a norm that follows it (Gemma 2).
        direction: Of any length but zero.
        count: How many tokens of each.
    """
    size = model.cfg.d_model**0.5
    like = next(model.blocks[place.layer].parameters())
    resid = (size * direction / direction.norm()).to(device_of(model), like.dtype)
    after: Any = getattr(model.blocks[place.layer], "ln2_post", None)
    ends = torch.stack([resid, -resid])
    ends = ends if after is None else after(ends[None])[0]
    plus, minus = final_logits(model, ends).float()
    scores = (plus - minus) / 2
    raised, lowered = ((sign * scores).topk(count).indices.cpu() for sign in (1, -1))
    return token_labels(model, raised), token_labels(model, lowered)
