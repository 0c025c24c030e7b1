"""zsRE's metrics: the share of an answer's tokens that are the most likely ones given the gold tokens before them.

Mean over the tokens of an answer, then over records; not "all tokens", as COUNTERFACT's accuracies are. Specificity
is the accuracy of true answers to unrelated questions, not whether these answers stayed, so it is low before any edit.

Released code decodes the gold tokens into the prompt, tokenises the whole again, and takes the first token of the
decoded gold one; with tokenizers that drop a text's first space this scores another text. Here the gold tokens follow
the prompt's own. With tokenizers that begin with BOS, AlphaEdit's code takes BOS for the first token of unrelated
answers, which is then always wrong; here no answer has one.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.running.borrowed import borrows
from tl_rome.scoring import ScoringPrompt, score_prompts
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, encode_target
from tl_rome.zsre.records import ZsreRecord


@dataclass(frozen=True)
class ZsreScores:
    """One record under one model; shares of tokens, 0 to 1."""

    efficacy: float
    """Of the answer after the question."""
    paraphrase: float
    """Of the answer after the question in other words."""
    specificity: float
    """Of the unrelated question's true answer."""


@borrows
def score_zsre(
    model: HookedModel, records: Sequence[ZsreRecord], *, edits: VirtualEdits | None = None
) -> list[ZsreScores]:
    """Score records together, each in the model with its own edit.

    Args:
        model: Left as found.
        records: What to score.
        edits: One per record; None is the model as it is.

    Raises:
        InputError: If a text cannot be tokenised.
        NumericsError: If a score is not finite.
    """
    asked = [
        (owner, *pair)
        for owner, record in enumerate(records)
        for pair in (
            (record.question, record.answer),
            (record.rephrase, record.answer),
            (f"{record.unrelated}?", record.unrelated_answer),
        )
    ]
    given, rows = list[ScoringPrompt](), list[int]()
    lengths = []
    for owner, prompt, answer in asked:
        start, target = encode(model, prompt), encode_target(model, answer, prompt, " ")
        lengths.append(len(target))
        for place in range(len(target)):
            given.append(ScoringPrompt(torch.cat([start, target[:place]]), (target[place : place + 1],)))
            rows.append(owner)
    context = nullcontext if edits is None else lambda chosen: edits.on([rows[row] for row in chosen])
    hits = score_prompts(model, given, row_context=context)[0].is_argmax.double()
    shares = [part.mean().item() for part in hits.split(lengths)] if lengths else []
    return [ZsreScores(*shares[first : first + 3]) for first in range(0, len(shares), 3)]
