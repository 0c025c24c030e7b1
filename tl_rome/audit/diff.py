"""Two versions of one model: which weights differ and how, and what both say to the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tl_rome.arguments import Count, Whole
from tl_rome.audit.answers import Answers, say, side_by_side
from tl_rome.audit.change import WeightChange, weight_change
from tl_rome.audit.finding import Finding, describe_change
from tl_rome.audit.grids import answer_grid, change_grid, finding_grid
from tl_rome.audit.likely import candidates
from tl_rome.audit.parameters import check_comparable, weight_pairs
from tl_rome.grid import Grid
from tl_rome.running.borrowed import borrowed
from tl_rome.sites import HookedModel


@dataclass(frozen=True, eq=False)
class ModelDiff:
    """How a model differs from its base."""

    changes: tuple[WeightChange, ...]
    """Every weight that differs, matrices of MLPs first."""
    unchanged: int
    """Weights that are equal bit for bit."""
    findings: tuple[Finding, ...]
    """What the changes of W_outs write, and for whom, in order of layers."""
    answers: tuple[Answers, ...]
    """The prompts in both models."""

    def grids(self) -> list[Grid]:
        """Tables of what differs, of what it writes, and of the answers; those without rows are left out."""
        differ = change_grid(self.changes, f"{len(self.changes)} weights differ, {self.unchanged} are equal.")
        more = (finding_grid(self.findings), answer_grid(self.answers, ("base", "edited")))
        return [differ, *(grid for grid in more if grid.rows)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        parts = {"changes": self.changes, "findings": self.findings, "answers": self.answers}
        return {"unchanged": self.unchanged, **{name: [x.to_dict() for x in part] for name, part in parts.items()}}


@torch.no_grad()
def diff_models(
    base: HookedModel,
    edited: HookedModel,
    *,
    prompts: Sequence[str] = (),
    subjects: Sequence[str] = (),
    top_k: Count = 5,
    new_tokens: Whole = 10,
) -> ModelDiff:
    """Compare two models weight by weight, and their answers to prompts.

    Args:
        base: Before; left as found.
        edited: After: of the same class, architecture, dtype and tokenizer; left as found.
        prompts: Texts to continue by both.
        subjects: Whom changes of W_outs may be about, beside the names that ship with the package.
        top_k: Likeliest next tokens to show after each prompt.
        new_tokens: Length of greedy continuations.

    Raises:
        ModelMismatchError: If the models cannot be compared, see `check_comparable`.
        UnsupportedModelError: See `borrowed`.
        InputError: If a prompt cannot be continued.
        SubjectError: If a subject is empty.
    """
    check_comparable(base, edited)
    subjects = candidates(subjects)
    changes, findings, unchanged = list[WeightChange](), list[Finding](), 0
    with borrowed(base), borrowed(edited):
        for name, place, before, after in weight_pairs(base, edited):
            change = weight_change(name, place, before, after)
            if change is None:
                unchanged += 1
                continue
            changes.append(change)
            if place is not None and place.name == "W_out":
                difference = after.cpu().double() - before.cpu().double()
                about = {"rank": max(1, change.rank), "subjects": subjects}
                findings.append(describe_change(edited, place, difference, change.right, **about))
        said = [say(model, prompts, top_k, new_tokens) for model in (base, edited)]
    return ModelDiff(tuple(changes), unchanged, tuple(findings), side_by_side(prompts, *said))
