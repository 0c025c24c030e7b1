"""Is there an edit in a model? With its base every change is seen; from the weights alone only strong ones are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tl_rome.arguments import Count, Whole
from tl_rome.audit.answers import Answers, say, side_by_side
from tl_rome.audit.change import WeightChange
from tl_rome.audit.diff import ModelDiff, diff_models
from tl_rome.audit.finding import Finding, describe_change
from tl_rome.audit.grids import answer_grid, change_grid, finding_grid
from tl_rome.audit.likely import ENDINGS, candidates, next_probs, questions, raised_objects
from tl_rome.audit.repair import Repair, repair_of
from tl_rome.audit.spectrum import layer_spectra, threshold
from tl_rome.editors.edits.update import DenseUpdate, LowRankUpdate, Update
from tl_rome.grid import Grid
from tl_rome.running.borrowed import borrowed
from tl_rome.sites import HookedModel

_MOST_SUBJECTS = 10
"""Subjects that are asked about."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found; the model is as it was, `repair.apply(model)` puts it right."""

    findings: tuple[Finding, ...]
    """Changes of W_outs of low rank, known or suspected, in order of layers."""
    others: tuple[WeightChange, ...]
    """With a base: all other weights that differ. A repair has those of MLPs; the rest has to come from the base."""
    objects: Mapping[str, tuple[str, ...]]
    """For each subject that stands out, the tokens that the changes raise most after it: the likely object first."""
    scores: tuple[float, ...]
    """Without a base: for each W_out its largest ratio to the edge of the bulk."""
    threshold: float | None
    """Without a base: the ratio from which a direction is suspicious."""
    repair: Repair | None
    """What takes the changes out; None if there are none in the MLPs."""
    answers: tuple[Answers, ...]
    """The prompts, with the changes taken out and with them."""
    unread: int = 0
    """Without a base: layers whose W_out could not be looked at."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings and not self.others

    @property
    def verdict(self) -> str:
        """What was found, in a sentence."""
        if self.is_clean:
            clean = "nothing stands out, which a weak or spread edit would not either"
            return "equal to the base" if self.threshold is None else f"{clean}{self._unread}"
        found = f"{len(self.findings)} low-rank changes of W_out" + (" suspected" if self.threshold is not None else "")
        differ = f"{found}, {len(self.others)} other weights differ"
        return differ if self.threshold is None else f"{found}{self._unread}"

    @property
    def _unread(self) -> str:
        return f"; {self.unread} layers were not looked at: their W_out cannot be read" if self.unread else ""

    def grids(self) -> list[Grid]:
        """Tables of the findings, of other changes, and of the answers; those without rows are left out."""
        others = change_grid(self.others, "Other weights that differ.")
        answers = answer_grid(self.answers, ("repaired", "as it is"))
        return [grid for grid in (finding_grid(self.findings, self.objects), others, answers) if grid.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        parts = {"findings": self.findings, "others": self.others, "answers": self.answers}
        return {
            "scores": list(self.scores),
            "threshold": self.threshold,
            "unread": self.unread,
            "objects": {subject: list(tokens) for subject, tokens in self.objects.items()},
            **{name: [x.to_dict() for x in part] for name, part in parts.items()},
        }


@torch.no_grad()
def audit_model(
    model: HookedModel,
    base: HookedModel | None = None,
    *,
    prompts: Sequence[str] = (),
    subjects: Sequence[str] = (),
    top_k: Count = 5,
    new_tokens: Whole = 10,
) -> Audit:
    """Look for edits in a model: of which layer, about whom, saying what; and how to take them out.

    Args:
        model: Left as found.
        base: What it should be: the same class, architecture, dtype and tokenizer; left as found. Without one,
            directions of W_outs that stand out are suspected, and a clean result means little: see docs/audit.md.
        prompts: Texts to continue with the changes and without.
        subjects: Whom an edit may be about, beside the names that ship with the package; nobody else can be named.
        top_k: Likeliest next tokens to show after each prompt.
        new_tokens: Length of greedy continuations.

    Raises:
        ModelMismatchError: If model and base cannot be compared, see `check_comparable`.
        UnsupportedModelError: See `borrowed`; without a base, if no layer's W_out can be read.
        InputError: If a prompt cannot be continued.
        SubjectError: If a subject is empty.
    """
    with borrowed(model):
        if base is None:
            found, updates, scores, bound = _suspected(model, candidates(subjects))
            others, provenance = (), {"audit": "weights alone", "threshold": bound}
        else:
            difference = diff_models(base, model, subjects=subjects)
            found, others = _sorted(difference)
            updates, scores, bound, provenance = _restoring(model, base, difference), (), None, {"audit": "base"}
        unread = model.cfg.n_layers - len(scores) if base is None else 0
        repair = repair_of(model, updates, provenance) if updates else None
        asked = list(dict.fromkeys(name for finding in found for name in finding.subjects))[:_MOST_SUBJECTS]
        texts = questions(asked)
        after, said = next_probs(model, texts) if texts else None, say(model, prompts, top_k, new_tokens)
        if repair is None:
            return Audit(found, others, {}, scores, bound, None, side_by_side(prompts, said, said), unread)
        with repair.applied(model):
            before, put_right = next_probs(model, texts) if texts else None, say(model, prompts, top_k, new_tokens)
        objects = {}
        if before is not None and after is not None:
            pairs = zip(before.split(len(ENDINGS)), after.split(len(ENDINGS)), strict=True)
            objects = {name: raised_objects(model, *pair) for name, pair in zip(asked, pairs, strict=True)}
    return Audit(found, others, objects, scores, bound, repair, side_by_side(prompts, put_right, said), unread)


def _sorted(difference: ModelDiff) -> tuple[tuple[Finding, ...], tuple[WeightChange, ...]]:
    """Changes of W_outs of low rank, and all others."""
    low = {change.place for change in difference.changes if change.is_low_rank}
    found = tuple(finding for finding in difference.findings if finding.place in low)
    places = {finding.place for finding in found}
    return found, tuple(change for change in difference.changes if change.place not in places)


def _restoring(model: HookedModel, base: HookedModel, difference: ModelDiff) -> list[Update]:
    """What gives the model the base's MLPs again, bit for bit."""
    found: list[Update] = []
    for place in (change.place for change in difference.changes if change.place is not None):
        audited, wanted = (place.weight(each).detach().cpu().double() for each in (model, base))
        found.append(DenseUpdate(place.layer, wanted - audited, place.name))
    return found


def _suspected(
    model: HookedModel, subjects: Sequence[str]
) -> tuple[tuple[Finding, ...], list[Update], tuple[float, ...], float]:
    """Directions that stand out: findings, what takes them out, the score of each layer, and the threshold."""
    spectra = layer_spectra(model)
    bound, found, updates = threshold(spectra), list[Finding](), list[Update]()
    for spectrum in spectra:
        rank = int((spectrum.ratios >= bound).sum())
        if not rank:
            continue
        place, right = spectrum.place, spectrum.right[:, :rank]
        left = place.weight(model).detach().cpu().double() @ right
        updates.append(LowRankUpdate(place.layer, -left, right))
        about = {"rank": rank, "subjects": subjects, "score": spectrum.score}
        found.append(describe_change(model, place, left @ right.T, right, **about))
    return tuple(found), updates, tuple(spectrum.score for spectrum in spectra), bound
