"""Whom a change of W_out is about, and what it makes the model say of them.

An edit's key direction hardly responds to other keys than its subject's. So candidates are ranked by how much the
change moves the value of each one's last token, ||k D|| / ||k W||; those that stand out are named. What the model says
of them is asked with endings that fit most subjects: tokens whose probability the change raises, by their share
p' log(p'/p) of the Kullback-Leibler divergence.

Every subject stands after the same few words: where a text begins without BOS, its first token has a key that is
unlike all others and that an edit, whose key is taken from within texts, does not move.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.facts import Fact
from tl_rome.patching.corruption import example_subjects
from tl_rome.running.forward import final_logits, last_resid, read
from tl_rome.running.matrices import MlpMatrix, key_hook
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, pad, token_labels

MENTION = "In fact, {}"
"""A text that ends in a subject."""
ENDINGS = (
    *(" is", " is a", " is in", " was", " is located in", " comes from", " was born in", " plays", " speaks"),
    *(" works as", " is known for", " belongs to", " was made by"),
)
"""What is put after a mention of a subject."""
STANDS_OUT = 4.0
"""A subject stands out if it is moved this many times more than the median of all candidates."""
_OF_LARGEST = 0.5
"""And at least by this share of what the first is moved by."""
_LEAST = 0.5
"""And its value by this share of its norm; an edit replaces it."""
_ROWS = 64
"""Texts run at once."""


def candidates(subjects: Sequence[str]) -> list[str]:
    """Subjects beside those that ship with the package, which the median of all is taken over, each once.

    Raises:
        SubjectError: If one is empty.
    """
    return [Fact(MENTION, subject).subject for subject in dict.fromkeys((*subjects, *example_subjects()))]


@torch.no_grad()
def subject_shifts(
    model: HookedModel, place: MlpMatrix, change: Float[Tensor, "d_mlp d_model"], subjects: Sequence[str]
) -> dict[str, float]:
    """How much a change of W_out moves the value of each subject's last token, relative to the value without it.

    Args:
        model: Left as found.
        place: A W_out.
        change: Which is in it; float64, on the CPU.
        subjects: Names.

    Returns:
        By subject, largest first.
    """
    before, found = place.weight(model).detach().cpu().double() - change, []
    for start in range(0, len(subjects), _ROWS):
        batch = pad([encode(model, Fact(MENTION, subject).prompt) for subject in subjects[start : start + _ROWS]])
        point = key_hook(place.layer)
        keys = read(model, batch.tokens, [point])[point]
        keys = keys[torch.arange(len(keys)), batch.last.to(keys.device)]
        moved, value = (keys.cpu().double() @ matrix for matrix in (change, before))
        found += (moved.norm(dim=1) / value.norm(dim=1)).tolist()
    return dict(sorted(zip(subjects, found, strict=True), key=lambda pair: -pair[1]))


def standing_out(shifts: dict[str, float]) -> tuple[str, ...]:
    """Subjects that a change moves far more than others, most first; none if it moves all alike."""
    if not shifts:
        return ()
    values = torch.tensor(list(shifts.values()))
    bound = max(_LEAST, STANDS_OUT * float(values.median()), _OF_LARGEST * float(values.max()))
    return tuple(subject for subject, shift in shifts.items() if shift >= bound)


def questions(subjects: Sequence[str]) -> list[str]:
    """Texts that a model is to continue about each subject, one for each ending."""
    return [Fact(MENTION + ending, subject).prompt for subject in subjects for ending in ENDINGS]


@torch.no_grad()
def next_probs(model: HookedModel, prompts: Sequence[str]) -> Float[Tensor, "prompts d_vocab"]:
    """Probabilities of the next token after each prompt; float32, on the CPU."""
    name, found = last_resid(model), []
    for start in range(0, len(prompts), _ROWS):
        batch = pad([encode(model, prompt) for prompt in prompts[start : start + _ROWS]])
        resid = read(model, batch.tokens, [name])[name]
        ends = resid[torch.arange(len(resid)), batch.last.to(resid.device)]
        found.append(final_logits(model, ends).float().softmax(-1).cpu())
    return torch.cat(found)


def raised_objects(
    model: HookedModel,
    before: Float[Tensor, "endings d_vocab"],
    after: Float[Tensor, "endings d_vocab"],
    count: int = 5,
) -> tuple[str, ...]:
    """Tokens that a change raises most over all endings."""
    tiny = torch.finfo(before.dtype).tiny
    gain = (after * (after.clamp(min=tiny) / before.clamp(min=tiny)).log()).sum(0)
    return token_labels(model, gain.topk(count).indices)
