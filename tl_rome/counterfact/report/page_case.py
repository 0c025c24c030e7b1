"""One record on the page of a run: its prompts with both targets' probabilities, its texts, and how each edit came out.

Models stand side by side, the unedited one first. Columns of editors carry the classes `e` and `e<place>`, by which the
page hides those of editors that are not chosen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tl_rome.counterfact.metrics.prompts import neighborhood_success, rewrite_success
from tl_rome.counterfact.records import CounterFactRecord, PromptGroup
from tl_rome.counterfact.results import UNEDITED, CaseResult, Measurement, Preset, PromptScores
from tl_rome.errors import InputError
from tl_rome.facts import Fact

OUTCOMES: Mapping[str, str] = {
    "success": "success: rewrite, paraphrases and neighbours",
    "failure": "failure of any kind",
    "rewrite": "the rewrite fails",
    "paraphrase": "a paraphrase fails",
    "neighborhood": "a neighbour fails",
    "error": "no edit was made",
}
"""What can be asked for, with its wording."""

_GROUPS: Mapping[PromptGroup, str] = {
    "rewrite": "Rewrite",
    "paraphrase": "Paraphrases: should say the new target",
    "neighborhood": "Neighbours: should still say the true target",
    "neighborhood_plus": "Neighbours after the rewrite (CounterFact+)",
    "attribute": "Others that have the new target",
}
_NEIGHBORS = ("neighborhood", "neighborhood_plus")
_RATED: tuple[PromptGroup, ...] = ("rewrite", "paraphrase", "neighborhood")


@dataclass(frozen=True)
class GroupView:
    """Prompts of one group."""

    name: str
    """Heading."""
    rows: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    """For each prompt its text, and for each model a cell: text, verdict ("ok", "bad" or none) and classes."""


@dataclass(frozen=True)
class CaseView:
    """A record as the page shows it."""

    number: int
    """Its case_id."""
    prompt: str
    """The rewriting prompt."""
    target_new: str
    """The object o*."""
    target_true: str
    """The object o^c."""
    badges: tuple[tuple[str, str, str], ...]
    """For each editor its name, verdict and a summary."""
    outcomes: tuple[tuple[str, ...] | None, ...]
    """For each editor those of `OUTCOMES` that hold; None where it has no result."""
    sides: tuple[tuple[str, str], ...]
    """Name and classes of each model that was measured."""
    groups: tuple[GroupView, ...]
    """Prompts by group."""
    texts: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    """For each generation prompt its text, and each model's name, classes and continuation."""


def case_view(
    results: Mapping[str, CaseResult], editors: Sequence[str], record: CounterFactRecord | None, preset: Preset
) -> CaseView:
    """Arrange the results of one record.

    Args:
        results: By editor.
        editors: All editors of the page, in its order.
        record: For the text of prompts; without it they are numbered.
        preset: Whose conventions.

    Raises:
        InputError: If the record is not the one that was evaluated.
    """
    some = next(iter(results.values()))
    rewrite = some.rewrite
    rewriting = Fact(rewrite.prompt, rewrite.subject).prompt
    if record is not None and record.requested_rewrite != rewrite:
        raise InputError(f"record {some.case_id} is not the one that was evaluated; give the records of the run")
    places = {name: place for place, name in enumerate(editors) if name in results}
    measured = {name: (results[name].after, f"e e{place}") for name, place in places.items()}
    before = next((result.before for result in results.values() if result.before is not None), None)
    sides = [(name, style, found) for name, (found, style) in {UNEDITED: (before, ""), **measured}.items() if found]
    judged = [_outcomes(results[name], preset) if name in places else None for name in editors]
    return CaseView(
        number=some.case_id,
        prompt=rewriting,
        target_new=rewrite.target_new.str,
        target_true=rewrite.target_true.str,
        badges=tuple(_badge(name, found) for name, found in zip(editors, judged, strict=True)),
        outcomes=tuple(judged),
        sides=tuple((name, style) for name, style, _ in sides),
        groups=tuple(_groups(sides, record, rewriting, preset)),
        texts=tuple(_texts(sides)),
    )


_Side = tuple[str, str, Measurement]
"""A model's name, classes, and what was measured."""


def _success(name: PromptGroup, scores: PromptScores, preset: Preset) -> float:
    """Share of prompts of a group that count as a success."""
    return (neighborhood_success if name in _NEIGHBORS else rewrite_success)(scores, preset)


def _outcomes(result: CaseResult, preset: Preset) -> tuple[str, ...]:
    if result.after is None:
        return ("failure", "error")
    failed = [name for name in _RATED if _success(name, getattr(result.after, name), preset) < 1]  # NaN is no failure
    return ("failure", *failed) if failed else ("success",)


def _badge(name: str, found: tuple[str, ...] | None) -> tuple[str, str, str]:
    if found is None:
        return name, "", "not run"
    wrong = [each for each in found if each not in ("failure", "success")]
    return name, "bad" if wrong else "ok", f"fails in {', '.join(wrong)}" if wrong else "holds"


def _groups(
    sides: Sequence[_Side], record: CounterFactRecord | None, rewriting: str, preset: Preset
) -> list[GroupView]:
    views = []
    for name, title in _GROUPS.items():
        scores = [(getattr(found, name), style) for _, style, found in sides]
        count = max((len(each) for each, _ in scores if each), default=0)
        prompts = record.prompts(name) if record else [rewriting] if name == "rewrite" else ()
        if record and any(each and len(each) != len(prompts) for each, _ in scores):
            raise InputError(
                f"record {record.case_id} has {len(prompts)} {name} prompts, and another number was evaluated; "
                "give the records of the run"
            )
        labels = prompts or [f"{name} {i + 1}" for i in range(count)]
        rows = [
            (label, tuple((*_cell(name, each, i, preset), style) for each, style in scores))
            for i, label in enumerate(labels[:count])
        ]
        if rows:
            views.append(GroupView(title, tuple(rows)))
    return views


def _cell(name: PromptGroup, scores: PromptScores | None, index: int, preset: Preset) -> tuple[str, str]:
    """P(o*) and P(o^c) after one prompt, and whether they are as they should be."""
    if scores is None:
        return "", ""
    one = _one(scores, index)
    new, true = (math.exp(-one.loss(target, preset)[0]) for target in ("new", "true"))
    verdict = "" if name == "attribute" else "ok" if _success(name, one, preset) else "bad"
    return f"{_short(new)} / {_short(true)}", verdict


def _one(scores: PromptScores, index: int) -> PromptScores:
    """The scores of one prompt."""
    return PromptScores(**{name: column and (column[index],) for name, column in vars(scores).items()})


def _short(prob: float) -> str:
    return f"{prob:.3f}" if prob >= 0.0005 else f"{prob:.0e}"


def _texts(sides: Sequence[_Side]) -> list[tuple[str, tuple[tuple[str, str, str], ...]]]:
    """Continuations by prompt: the models have continued the same prompts in the same order."""
    prompts = [text.prompt for text in sides[0][2].generations] if sides else []
    return [
        (
            prompt,
            tuple(
                (name, style, found.generations[i].continuation) for name, style, found in sides if found.generations
            ),
        )
        for i, prompt in enumerate(prompts)
    ]
