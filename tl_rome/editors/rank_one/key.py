"""k*, the key by which an MLP knows a subject (section 3.1, eq. 3).

The key is the input of W_out at the subject's last token. The paper and the released code average it over sampled
prefixes; the draft takes it from the bare subject text. What follows the subject cannot reach it.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.rank_one.presets import KeyChoice
from tl_rome.facts import Fact
from tl_rome.running.arithmetic import in_float64
from tl_rome.running.forward import read
from tl_rome.running.matrices import key_hook
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode_fact, pad

_log = logging.getLogger(__name__)


def sink_warning(model: HookedModel, fact: Fact) -> tuple[str, ...]:
    """What is wrong with the key of a subject that is the first token of the text, in words and logged; else nothing.

    Models put an attention sink on the first token: its activations are huge and hardly depend on the word.

    Raises:
        SubjectError: If the subject does not lie on whole tokens.
    """
    prompt = encode_fact(model, fact)
    if prompt.subject.last > 0:
        return ()
    warning = (
        f"the subject {fact.subject!r} is the first token of the text, an attention sink whose key is unlike others; "
        "put a few words before it in the template"
    )
    _log.warning("the edit of %r: %s", fact.prompt, warning)
    return (warning,)


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


Keys = Mapping[KeyChoice, Float[Tensor, " d_mlp"]]
"""Keys of one subject."""


def keys_in_contexts(rows: Float[Tensor, "contexts d_mlp"]) -> Keys:
    """The keys that depend on contexts, from the subject's key in each of them, as `subject_keys` gives it."""
    return {"prompt": in_float64(rows[0]), "contexts": in_float64(rows).mean(0)}


def chosen_keys(
    model: HookedModel,
    layer: int,
    fact: Fact,
    contexts: Sequence[str],
    choices: Iterable[KeyChoice],
    known: Keys = MappingProxyType({}),
) -> Keys:
    """The keys that a preset names; in float64, on the model's device where that has it, else on the CPU.

    Args:
        model: Left as found.
        layer: Layer whose W_out the keys enter.
        fact: Prompt and subject.
        contexts: Prefixes, the empty one first.
        choices: Which keys: "subject" is that of the bare subject text, "contexts" the mean over contexts, "prompt"
            that of the first context.
        known: Keys that need no run any more.

    Raises:
        SubjectError: If the subject does not lie on whole tokens in some context.
    """
    wanted = set(choices)
    missing, found = wanted - known.keys(), dict(known)
    if "subject" in missing:
        found["subject"] = in_float64(subject_keys(model, layer, Fact("{}", fact.subject), ("",))[0])
    if missing - {"subject"}:
        found |= keys_in_contexts(subject_keys(model, layer, fact, contexts if "contexts" in missing else contexts[:1]))
    return {choice: found[choice] for choice in wanted}
