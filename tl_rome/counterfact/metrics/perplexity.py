"""ME-PPL: whether a model still writes plain text, in one number that takes a second.

Yang et al. (2024), The Butterfly Effect of Model Editing (arXiv 2402.09656): a model that an edit has broken shows it
by its perplexity on a few dozen ordinary texts. Their released code (`ppl.py`) takes exp of the mean loss of each
text's tokens but the first, without BOS, and the arithmetic mean of these perplexities over texts. So a single text
that the model can no longer read is enough to raise it. Here a model that is to get BOS gets it, as everywhere; the
tokens that are scored are the same.

Their ME-PPL_50 is sampled from other people's corpora. The fifty sentences here were written for this package, without
names or facts that an edit could be about: figures compare with each other, not with those of that paper.
"""

from collections.abc import Sequence
from importlib import resources

import torch

from tl_rome.arguments import Count
from tl_rome.editors.edits.virtual import AnyEdit, VirtualEdits
from tl_rome.errors import InputError
from tl_rome.running.borrowed import borrows
from tl_rome.scoring import ScoringPrompt, score_prompts
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode

_FILE = "plain_sentences.txt"


def plain_sentences() -> tuple[str, ...]:
    """The fifty sentences that `me_ppl` reads by default."""
    return tuple(resources.files("tl_rome.data").joinpath(_FILE).read_text("utf-8").splitlines())


@borrows
def me_ppl(
    model: HookedModel,
    edit: AnyEdit | None = None,
    *,
    texts: Sequence[str] | None = None,
    max_batch_tokens: Count | None = None,
) -> float:
    """Mean over texts of each one's perplexity: exp of the mean of -log P(token | those before), but for its first.

    Args:
        model: Left as found. Edits that are applied to it count.
        edit: Added by hooks, with the weights as they are; it must not be applied.
        texts: At least two tokens each; by default `plain_sentences`.
        max_batch_tokens: See `score_targets`.

    Returns:
        At least 1; infinite where it exceeds the range of float64.

    Raises:
        InputError: If there is no text, or one is shorter than two tokens or longer than the model's context.
        NumericsError: If a log-probability is not finite.
        ModelMismatchError: If the edit is for another model.
        EditStateError: If the edit is applied.
    """
    texts = plain_sentences() if texts is None else texts
    if not texts:
        raise InputError("there are no texts to read; give some, or None for the shipped ones")
    given = [_after_first(model, text) for text in texts]
    if edit is None:
        scores, _ = score_prompts(model, given, max_batch_tokens=max_batch_tokens)
    else:
        edited = VirtualEdits(model, [edit])
        scores, _ = score_prompts(
            model, given, max_batch_tokens=max_batch_tokens, row_context=lambda rows: edited.on([0] * len(rows))
        )
    return float(torch.exp(scores.nll).mean())


def _after_first(model: HookedModel, text: str) -> ScoringPrompt:
    tokens = encode(model, text)
    bos = bool(model.cfg.default_prepend_bos)
    if len(tokens) < 2 + bos:
        raise InputError(f"{text!r} has a single token, so that there is none to predict; give longer texts")
    return ScoringPrompt(tokens[: 1 + bos], (tokens[1 + bos :],))
