"""What is attacked: a tiny model with an edit, a sequence, and the jobs that a user runs on it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from support.edits import CONTEXTS, REQUEST, covariance
from support.evaluation import RECORDS, SHORT, RandomEdit
from support.state import State, changed, model_state
from support.traces import trace
from tl_rome import Edit, continue_texts, edited_rows, evaluate, load_model, rome, score_targets
from tl_rome.editors import FT, RELEASED, EditSequence, FineTune, compose

_TOKENS = torch.arange(3, 23)[None]
_PROMPTS = ("The Eiffel Tower is in", "Where is the Colosseum? It is in", "Paris")
_SHORT = replace(RELEASED, max_evaluations=3)
_TUNE = FineTune(1, replace(FT, max_steps=3))


class Attacked:
    """A model, how it was, and objects of its own that the jobs need."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = str(folder), kind
        self.renew()

    def renew(self) -> None:
        """Take a new model, because the old one is broken."""
        self.model: Any = load_model(self.folder, model_class=self.kind, device="cpu", progress=False)
        self.covariance = covariance(self.model)
        self.logits = self.model(_TOKENS)
        self.state: State = model_state(self.model)
        self.edit: Edit = RandomEdit(1)(self.model, REQUEST)
        self.sequence: EditSequence = compose(RandomEdit(layer)(self.model, REQUEST) for layer in (1, 2, 1))

    def broken(self) -> str:
        """What is not as it was in the model, in words; nothing if all is. It still has to run, too."""
        found = changed(self.state, model_state(self.model))
        left = [edit for edit in (self.edit, *self.sequence.edits) if edit.is_applied(self.model)]
        found += f"; {len(left)} edits say that they are applied" if left else ""
        if not found and not torch.equal(self.model(_TOKENS), self.logits):
            found = "the model gives other logits"
        return found

    def jobs(self) -> dict[str, Callable[[], Any]]:
        """Calls by name, each with a result that is the same every time."""
        model, generator = self.model, torch.Generator
        return {
            "edit": self._with_edit,
            "sequence": self._with_sequence,
            "rows": self._rows,
            "trace": lambda: trace(model).scores,
            "rome": lambda: self._rome().updates[0].delta,
            "finetune": lambda: _TUNE(model, REQUEST).updates[0].delta,
            "evaluate": lambda: self._evaluate(),
            "score": lambda: score_targets(model, _PROMPTS, ["Paris"] * 3).logprob,
            "generate": lambda: continue_texts(model, _PROMPTS, 6, generator=generator().manual_seed(0)),
        }

    def _with_edit(self) -> Any:
        with self.edit.applied(self.model) as edited:
            return edited(_TOKENS)

    def _with_sequence(self) -> Any:
        with self.sequence.applied(self.model) as edited:
            return edited(_TOKENS)

    def _rows(self) -> Any:
        with edited_rows(self.model, [self.edit]) as edited:
            return edited(_TOKENS)

    def _rome(self) -> Edit:
        made = {"covariance": self.covariance, "contexts": CONTEXTS, "config": _SHORT, "layer": 1}
        return rome(self.model, REQUEST, progress=False, **made)

    def _evaluate(self) -> Any:
        config = replace(SHORT, generation_length=12)
        results = evaluate(self.model, RECORDS[:2], RandomEdit(1), config=config, progress=False)
        return [replace(result, seconds=0.0) for result in results]


def same_result(one: Any, other: Any) -> bool:
    """Whether two results of a job are equal bit for bit."""
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
