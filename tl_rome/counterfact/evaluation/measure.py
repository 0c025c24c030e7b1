"""One model, or many edited ones, on the prompts of some records: raw scores, next-token states and texts.

All prompts of a batch of records are scored in the same passes, each in the model with its own record's edit, and all
texts are generated side by side. Every text has a seed of its own, made of the run's seed, the record's number and the
prompt's place, so that it depends neither on the batch nor on the editor.

Texts are as long as the released code makes them: 100 tokens with the prompt, sampled among the 5 most likely tokens.
Special tokens are left out of them, as there. The released essence score divides by one token too many; here it is the
mean over the tokens that are predicted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Count, Whole
from tl_rome.counterfact.evaluation.continuation import continuation
from tl_rome.counterfact.evaluation.free import answer_freely
from tl_rome.counterfact.groups import PromptAnswer
from tl_rome.counterfact.metrics.prompts import check_comparable, relative_entropy
from tl_rome.counterfact.records import CounterFactRecord, PromptGroup
from tl_rome.counterfact.results import AnswerScores, Divergence, Generation, Measurement, PromptScores
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.generation import generate_to_length
from tl_rome.running.forward import device_of, final_logits
from tl_rome.scoring import ScoringPrompt, TargetScores, score_prompts
from tl_rome.sites import HookedModel
from tl_rome.storage.files import digest
from tl_rome.storage.text import has_half_character
from tl_rome.tokens import encode

_ESSENCE_TOKENS = 100
_NAMED = "groups."
"""Sets a record's own groups apart from COUNTERFACT's."""
States = Mapping[str, Float[Tensor, "_ d_model"]]
"""The last block's output at the end of some prompts, by group; next-token logits are computed from it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured besides rewrite, paraphrase and neighbourhood scores; the defaults give the columns of table 4.

    Raises:
        InputError: If a number is out of range, the template has not exactly one `{}`, or a text holds half a
            character (a lone surrogate).
    """

    generation_length: Whole = 100
    """Tokens of each generated text, its prompt included; 0 generates none. The draft has 200."""
    texts: Count | None = None
    """How many of a record's generation prompts are used, from the first; None is all, ten in the released data."""
    top_k: Count | None = 5
    """Texts are sampled among this many most likely tokens; None is all."""
    kl: bool = True
    """Whether to compare next-token distributions after neighbourhood prompts with those of the unedited model."""
    counterfact_plus: bool = False
    """Whether to score neighbourhood prompts with the rewrite stated before them too."""
    attribute: bool = False
    """Whether to score attribute prompts."""
    essence_template: str | None = "{} is a"
    """Where to read essence drift, with the subject filled in; None does not."""
    essence_texts: Mapping[str, str] = field(default_factory=dict)
    """By subject a text about it, whose perplexity is measured; its first 100 tokens are taken."""
    free: bool = False
    """Whether to let the model answer rewrite and paraphrase prompts by itself, greedily up to a natural stop."""
    free_tokens: Count = 20
    """At most so many tokens are written for such an answer."""

    def __post_init__(self) -> None:
        if self.essence_template is not None:
            Fact(self.essence_template, "subject")
        if any(map(has_half_character, (*self.essence_texts, *self.essence_texts.values()))):
            raise InputError("an essence text holds half a character (a lone surrogate); write the whole one")

    @property
    def compared(self) -> tuple[str, ...]:
        """Groups of prompts after which next-token distributions are compared."""
        plus = ("neighborhood_plus",) if self.counterfact_plus else ()
        essence = () if self.essence_template is None else ("essence",)
        return (*(("neighborhood", *plus) if self.kl else ()), *essence)

    def describe(self) -> dict[str, Any]:
        """JSON form for a store's settings; a digest stands for texts, and free answers are named only if asked for."""
        free = ("free", "free_tokens")
        plain = {name: value for name, value in asdict(self).items() if self.free or name not in free}
        return {**plain, "essence_texts": digest(sorted(self.essence_texts.items()))}


@dataclass(frozen=True, eq=False)
class MeasuredRecord:
    """What one model shows on one record's prompts."""

    measurement: Measurement
    """Scores and texts."""
    states: States
    """On the CPU, in the model's dtype."""


def measure(
    model: HookedModel,
    records: Sequence[CounterFactRecord],
    config: EvaluationConfig,
    *,
    seed: int = 0,
    edits: VirtualEdits | None = None,
) -> list[MeasuredRecord]:
    """Measure some records together.

    Args:
        model: Left as found.
        records: Each is measured in the model with its own edit.
        config: What to measure.
        seed: Of the generated texts.
        edits: One per record; None is the model as it is.

    Raises:
        InputError: If a text cannot be tokenised, or a generated one would exceed the context.
        NumericsError: If a score is not finite.
    """
    sections = [_sections(model, record, config) for record in records]
    owner = [i for i, groups in enumerate(sections) for prompts in groups.values() for _ in prompts]
    given = [prompt for groups in sections for prompts in groups.values() for prompt in prompts]
    scores, states = score_prompts(
        model, given, row_context=nullcontext if edits is None else lambda rows: edits.on([owner[row] for row in rows])
    )
    texts = generate(model, records, config, seed=seed, edits=edits)
    answers = answer_freely(model, records, config.free_tokens, edits=edits) if config.free else [{} for _ in records]
    readings = []
    parts = zip(records, _split(sections, scores, states), texts, answers, strict=True)
    for record, (found, kept), generations, said in parts:
        nll = found.pop("essence_text").nll if "essence_text" in found else None
        named = {name: _answers(group, found.pop(_NAMED + name)) for name, group in record.groups.items()}
        groups = {name: PromptScores.pair(both[::2], both[1::2]) for name, both in found.items() if name != "essence"}
        essence_nll = None if nll is None else nll.item()
        measured = Measurement(
            **groups,
            generations=generations,
            essence_nll=essence_nll,
            free_rewrite=said.get("rewrite", ()),
            free_paraphrase=said.get("paraphrase", ()),
            groups=named,
        )
        readings.append(MeasuredRecord(measured, {name: kept[name].clone() for name in config.compared}))
    return readings


def _sections(
    model: HookedModel, record: CounterFactRecord, config: EvaluationConfig
) -> dict[str, list[ScoringPrompt]]:
    """Tokens of all prompts that are scored or read, by group; scored ones with o* and o^c."""
    rewrite, request = record.requested_rewrite, record.request
    targets = (rewrite.target_new.str, rewrite.target_true.str)
    plus: list[PromptGroup] = ["neighborhood_plus"] if config.counterfact_plus else []
    attribute: list[PromptGroup] = ["attribute"] if config.attribute else []
    groups: tuple[PromptGroup, ...] = ("rewrite", "paraphrase", "neighborhood", *plus, *attribute)
    found: dict[str, list[ScoringPrompt]] = {
        name: [ScoringPrompt.texts(model, prompt, targets, record.joiner) for prompt in record.prompts(name)]
        for name in groups
    }
    for name, group in record.groups.items():
        found[_NAMED + name] = [ScoringPrompt.texts(model, each.prompt, each.answers, record.joiner) for each in group]
    if config.essence_template is not None:
        found["essence"] = [ScoringPrompt(encode(model, Fact(config.essence_template, request.subject).prompt))]
    if request.subject in config.essence_texts:
        tokens = encode(model, config.essence_texts[request.subject], truncate=True)[:_ESSENCE_TOKENS]
        if len(tokens) > 1:
            found["essence_text"] = [ScoringPrompt(tokens[:1], (tokens[1:],))]
    return found


def _split(
    sections: Sequence[Mapping[str, Sequence[ScoringPrompt]]],
    scores: TargetScores,
    states: Float[Tensor, "prompts d_model"],
) -> Iterator[tuple[dict[str, TargetScores], dict[str, Tensor]]]:
    """Scores and states of each record by group."""
    prompt = target = 0
    for groups in sections:
        found, kept = {}, {}
        for name, given in groups.items():
            ends = sum(len(each.ends) for each in given)
            found[name] = scores[target : target + ends]
            kept[name] = states[prompt : prompt + len(given)]
            prompt, target = prompt + len(given), target + ends
        yield found, kept


def _answers(group: Sequence[PromptAnswer], scores: TargetScores) -> AnswerScores:
    """Scores of all answers to a group's prompts, parted by prompt."""
    sizes = [len(each.answers) for each in group]
    columns = (scores.logprob, scores.n_tokens, scores.is_argmax)
    return AnswerScores(*(tuple(tuple(part.tolist()) for part in column.split(sizes)) for column in columns))


def generate(
    model: HookedModel,
    records: Sequence[CounterFactRecord],
    config: EvaluationConfig,
    *,
    seed: int = 0,
    edits: VirtualEdits | None = None,
) -> list[tuple[Generation, ...]]:
    """Continue the generation prompts of some records; see `measure`."""
    asked = [record.generation_prompts[: config.texts] for record in records]
    prompts = [(i, text) for i, texts in enumerate(asked) for text in texts]
    written: list[list[Generation]] = [[] for _ in records]
    if prompts and config.generation_length:
        owners = zip(records, asked, strict=True)
        seeds = [digest([seed, record.case_id, place]) for record, texts in owners for place in range(len(texts))]
        generators = [torch.Generator().manual_seed(int(each, 16) >> 1) for each in seeds]
        starts = [encode(model, text) for _, text in prompts]
        with nullcontext() if edits is None else edits.on([owner for owner, _ in prompts]):
            filled = generate_to_length(
                model, starts, config.generation_length, generator=generators, top_k=config.top_k
            )
        for (owner, text), start, tokens in zip(prompts, starts, filled, strict=True):
            written[owner].append(Generation(text, continuation(model, tokens, len(start))))
    return [tuple(each) for each in written]


@torch.no_grad()
def compare(model: HookedModel, before: Sequence[States], after: Sequence[States]) -> list[Divergence]:
    """KL(before || after) of next-token distributions, for each of some records.

    Args:
        model: The model that the states are of, edited or not: edits do not touch the unembedding.
        before: States of the unedited model.
        after: States of the edited model.

    Raises:
        InputError: If a logit is not finite.
    """
    groups = [(record, name) for record, states in enumerate(after) for name in states if len(states[name])]
    found = []
    for record, name in groups:
        parts = [side[record][name].to(device_of(model)) for side in (before, after)]
        found.append(relative_entropy(*(final_logits(model, part) for part in parts)))
    read = torch.cat(found).cpu() if found else torch.zeros(0)  # once for all records
    check_comparable(read)
    figures: list[dict[str, tuple[float, ...]]] = [{} for _ in after]
    for (record, name), each in zip(groups, read.split([len(each) for each in found]), strict=True):
        figures[record][name] = tuple(each.tolist())
    return [Divergence(essence=each.pop("essence", (None,))[0], **each) for each in figures]
