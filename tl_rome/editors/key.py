"""k*, the key by which an MLP knows a subject (section 4.2, eq. 12).

The key is the input of W_out at the subject's last token. The paper takes it from the bare subject text; the published
text and the released code average it over sampled prefixes. What follows the subject cannot reach it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.facts import Fact
from tl_rome.forward import read
from tl_rome.sites import HookedModel, key_hook
from tl_rome.tokens import encode_fact, pad


@torch.no_grad()
def subject_keys(
    model: HookedModel, layer: int, fact: Fact, contexts: Sequence[str]
) -> Float[Tensor, "contexts d_mlp"]:
    """The subject's key in each context.

    Args:
        model: Left as found.
        layer: Layer whose W_out the keys enter.
        fact: Prompt and subject.
        contexts: Prefixes, as `sample_contexts` returns them.

    Raises:
        SubjectError: If the subject does not lie on whole tokens in some context.
    """
    prompts = [encode_fact(model, fact, prefix) for prefix in contexts]
    batch = pad([prompt.tokens[: prompt.subject.end] for prompt in prompts])
    keys = read(model, batch.tokens, [key_hook(layer)])[key_hook(layer)]
    return keys[torch.arange(len(prompts)), batch.last]
