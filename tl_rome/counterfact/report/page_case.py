"""One record on the page of a run: its prompts with both targets' probabilities, its texts, each edit's outcome.

Models stand side by side, the unedited one first. Columns of editors carry the classes `e` and `e<place>`, by which the
page hides those of editors that are not chosen.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tl_rome.counterfact.metrics.prompts import neighborhood_success, rewrite_success
from tl_rome.counterfact.records import CounterFactRecord, PromptGroup
from tl_rome.counterfact.results import (
    TOOK,
    UNEDITED,
    AnswerScores,
    CaseResult,
    Conventions,
    Generation,
    Measurement,
    PromptScores,
)
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
"""What the page can filter by, with its wording."""

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
class Side:
    """One model that was measured on the record."""

    name: str
    """The editor's, or `UNEDITED`."""
    classes: str
    """Of its cells and texts."""
    measurement: Measurement
    """Its scores and texts."""


@dataclass(frozen=True)
class Cell:
    """What one model shows after one prompt."""

    side: Side
    """The model."""
    text: str
    """Both targets' probabilities, or a continuation."""
    verdict: str = ""
    """ "ok", "bad" or empty."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt with every model's cell."""

    prompt: str
    """Its text, or its number where that is unknown."""
    cells: tuple[Cell, ...]
    """In the order of the sides."""


@dataclass(frozen=True)
class GroupView:
    """Prompts of one group."""

    title: str
    """Heading."""
    rows: tuple[PromptRow, ...]
    """One for each prompt."""


@dataclass(frozen=True)
class Badge:
    """How one editor did on the record, in a few words."""

    editor: str
    """Its name."""
    verdict: str
    """ "ok", "bad" or empty."""
    text: str
    """What fails, if anything."""


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
    badges: tuple[Badge, ...]
    """One for each editor."""
    outcomes: tuple[tuple[str, ...] | None, ...]
    """For each editor those of `OUTCOMES` that hold; None where it has no result."""
    sides: tuple[Side, ...]
    """Each model that was measured, the unedited one first."""
    groups: tuple[GroupView, ...]
    """Prompts by group."""
    texts: tuple[PromptRow, ...]
    """Generation prompts with each model's continuation."""
    answers: tuple[PromptRow, ...]
    """Rewrite and paraphrase prompts with what each model says by itself."""


def case_view(
    results: Mapping[str, CaseResult],
    editors: Sequence[str],
    record: CounterFactRecord | None,
    conventions: Conventions,
) -> CaseView:
    """Arrange the results of one record.

    Args:
        results: By editor.
        editors: All editors of the page, in its order.
        record: For the text of prompts; without it they are numbered.
        conventions: Whose conventions.

    Raises:
        InputError: If the record is not the one that was evaluated.
    """
    some = next(iter(results.values()))
    rewrite = some.rewrite
    rewriting = Fact(rewrite.prompt, rewrite.subject).prompt
    if record is not None and record.requested_rewrite != rewrite:
        raise InputError(f"record {some.case_id} is not the one that was evaluated; give the records of the run")
    places = {name: place for place, name in enumerate(editors) if name in results}
    before = next((result.before for result in results.values() if result.before is not None), None)
    after = {name: (results[name].after, f"e e{place}") for name, place in places.items()}
    measured = {UNEDITED: (before, ""), **after}
    sides = [Side(name, classes, found) for name, (found, classes) in measured.items() if found]
    judged = [_outcomes(results[name], conventions) if name in places else None for name in editors]
    return CaseView(
        number=some.case_id,
        prompt=rewriting,
        target_new=rewrite.target_new.str,
        target_true=rewrite.target_true.str,
        badges=tuple(_badge(name, found, results.get(name)) for name, found in zip(editors, judged, strict=True)),
        outcomes=tuple(judged),
        sides=tuple(sides),
        groups=tuple(_groups(sides, record, rewriting, conventions)),
        texts=tuple(_texts([(side, side.measurement.generations) for side in sides])),
        answers=tuple(
            _texts([(side, side.measurement.free_rewrite + side.measurement.free_paraphrase) for side in sides])
        ),
    )


def _success(name: PromptGroup, scores: PromptScores, conventions: Conventions) -> float:
    """Share of prompts of a group that count as a success."""
    return (neighborhood_success if name in _NEIGHBORS else rewrite_success)(scores, conventions)


def _outcomes(result: CaseResult, conventions: Conventions) -> tuple[str, ...]:
    if result.after is None:
        return ("failure", "error")
    failed = [
        name for name in _RATED if _success(name, getattr(result.after, name), conventions) < 1
    ]  # NaN is not a failure
    return ("failure", *failed) if failed else ("success",)


def _badge(name: str, found: tuple[str, ...] | None, result: CaseResult | None) -> Badge:
    if found is None or result is None:
        return Badge(name, "", "not run")
    wrong = [each for each in found if each not in ("failure", "success")]
    verdict = "" if result.verdict in (None, TOOK) else f" (edit: {result.verdict})"
    if wrong:
        return Badge(name, "bad", f"fails in {', '.join(wrong)}{verdict}")
    return Badge(name, "ok", f"holds{verdict}")


def _groups(
    sides: Sequence[Side], record: CounterFactRecord | None, rewriting: str, conventions: Conventions
) -> list[GroupView]:
    views = []
    for name, title in _GROUPS.items():
        scores = [getattr(side.measurement, name) for side in sides]
        count = max((len(each) for each in scores if each), default=0)
        prompts = record.prompts(name) if record else [rewriting] if name == "rewrite" else ()
        if record and any(each and len(each) != len(prompts) for each in scores):
            raise InputError(
                f"record {record.case_id} has {len(prompts)} {name} prompts, and another number was evaluated; "
                "give the records of the run"
            )
        labels = prompts or [f"{name} {i + 1}" for i in range(count)]
        rows = [
            PromptRow(label, tuple(_cell(side, name, i, conventions) for side in sides))
            for i, label in enumerate(labels[:count])
        ]
        if rows:
            views.append(GroupView(title, tuple(rows)))
    return [*views, *_named_groups(sides, record, conventions)]


def _named_groups(
    sides: Sequence[Side], record: CounterFactRecord | None, conventions: Conventions
) -> Iterator[GroupView]:
    """The record's own groups, each prompt with the probability of its likeliest answer."""
    for name, found in sides[0].measurement.groups.items() if sides else ():
        asked = record.groups.get(name, ()) if record else ()
        if record and len(asked) != len(found):
            raise InputError(f"record {record.case_id} has other prompts in {name!r}; give the records of the run")
        labels = [f"{each.prompt} … {' | '.join(each.answers)}" for each in asked]
        rows = [
            PromptRow(
                labels[i] if asked else f"{name} {i + 1}",
                tuple(_answer_cell(side, side.measurement.groups.get(name), i, conventions) for side in sides),
            )
            for i in range(len(found))
        ]
        yield GroupView(f"{name}: the likeliest answer", tuple(rows))


def _answer_cell(side: Side, scores: AnswerScores | None, index: int, conventions: Conventions) -> Cell:
    if scores is None:
        return Cell(side, "")
    verdict = "ok" if any(scores.argmax[index]) else "bad"
    return Cell(side, _short(math.exp(-min(scores.losses(conventions)[index]))), verdict)


def _cell(side: Side, name: PromptGroup, index: int, conventions: Conventions) -> Cell:
    """P(o*) and P(o^c) after one prompt, and whether they are as they should be."""
    scores: PromptScores | None = getattr(side.measurement, name)
    if scores is None:
        return Cell(side, "")
    one = _one(scores, index)
    new, true = (math.exp(-one.loss(target, conventions)[0]) for target in ("new", "true"))
    verdict = "" if name == "attribute" else "ok" if _success(name, one, conventions) else "bad"
    return Cell(side, f"{_short(new)} / {_short(true)}", verdict)


def _one(scores: PromptScores, index: int) -> PromptScores:
    """The scores of one prompt."""
    return PromptScores(**{name: column and (column[index],) for name, column in vars(scores).items()})


def _short(prob: float) -> str:
    return f"{prob:.3f}" if prob >= 0.0005 else f"{prob:.0e}"


def _texts(written: Sequence[tuple[Side, Sequence[Generation]]]) -> list[PromptRow]:
    """Continuations by prompt: the models that have any have continued the same prompts in the same order."""
    some = [(side, texts) for side, texts in written if texts]
    prompts = [text.prompt for text in some[0][1]] if some else []
    return [
        PromptRow(prompt, tuple(Cell(side, texts[i].continuation) for side, texts in some))
        for i, prompt in enumerate(prompts)
    ]
