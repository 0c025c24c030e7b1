"""Records and editors for tiny models: a random rank-one and a random dense edit, drawn from the request itself."""

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tl_rome.counterfact import CaseResult, evaluate
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.counterfact.records import CounterFactRecord, RequestedRewrite, Target
from tl_rome.editors import DenseUpdate, Edit, LowRankUpdate, Receipt
from tl_rome.editors.edits.receipts.receipt import MatrixChange
from tl_rome.errors import NumericsError
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import w_out
from tl_rome.storage.files import fingerprint

SHORT = EvaluationConfig(generation_length=24, counterfact_plus=True, attribute=True)
QUICK = EvaluationConfig(generation_length=0)


def record(number: int, subject: str, new: str, true: str, neighbors: tuple[str, ...]) -> CounterFactRecord:
    """A record about where something is."""
    return CounterFactRecord(
        case_id=number,
        requested_rewrite=RequestedRewrite("{} is located in the city of", "P131", Target(new), Target(true), subject),
        paraphrase_prompts=(f"Where is {subject}? It is in", f"{subject} stands in"),
        neighborhood_prompts=tuple(f"{name} is located in the city of" for name in neighbors),
        attribute_prompts=("The Colosseum is in",),
        generation_prompts=(f"{subject} is", f"Visitors of {subject} say that it", f"{subject} is"),
    )


RECORDS = (
    record(3, "The Eiffel Tower", "Rome", "Paris", ("The Louvre",)),
    record(7, "The Space Needle", "New York", "Seattle", ()),
    record(5, "The Kremlin", "Rio de Janeiro, in Brazil", "Moscow", ("The Bolshoi Theatre", "Red Square")),
    record(1, "Big Ben", "the United Kingdom", "the United States", ("The Tower Bridge",)),
    record(2, "The Acropolis", "Berlin", "Athens", ("The Agora", "The Parthenon")),
)


NUMBERS = [record.case_id for record in RECORDS]


def run(model: Any, editor: Any = None, records: Any = RECORDS, **options: Any) -> list[CaseResult]:
    """`evaluate` in batches of two, without texts."""
    return evaluate(model, records, editor, **{"config": QUICK, "progress": False, "batch_size": 2, **options})


@dataclass(frozen=True)
class RandomEdit:
    """An editor whose edits are random, but always the same for a request."""

    layer: int = 1
    strength: float = 2.0
    dense: bool = False
    refused: tuple[str, ...] = ()
    """Subjects that cannot be edited."""

    def __call__(self, model: Any, request: EditRequest) -> Edit:
        if request.subject in self.refused:
            raise NumericsError(f"no edit of {request.subject}")
        seed = int(hashlib.sha256(request.subject.encode()).hexdigest()[:15], 16)
        generator = torch.Generator().manual_seed(seed)
        d_mlp, d_model = w_out(model, self.layer).shape
        u, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (d_mlp, d_model))
        update = LowRankUpdate.rank_one(self.layer, u / u.norm(), self.strength * v)
        if self.dense:
            update = DenseUpdate(self.layer, update.delta.float())
        return Edit((update,), request, self._receipt(request), fingerprint(model), {})

    def _receipt(self, request: EditRequest) -> Receipt:
        return Receipt(
            prompt=request.fact.prompt,
            target_new=request.target_new,
            target_true=None,
            prob_new=(0.0, 0.0),
            prob_true=None,
            preset="random",
            changes=(MatrixChange(self.layer, "W_out", None if self.dense else 1, 0.0),),
            layer_choice="given",
            evaluations=0,
            final_loss=0.0,
            seconds=1.5,
        )


class Judged(Receipt):
    """A receipt with a verdict of a test's choice."""

    verdict = None


@dataclass(frozen=True)
class JudgedEdit(RandomEdit):
    """The same, with verdicts on some subjects in their receipts."""

    verdicts: tuple[tuple[str, str], ...] = ()

    def _receipt(self, request: EditRequest) -> Receipt:
        receipt = Judged(**vars(super()._receipt(request)))
        object.__setattr__(receipt, "verdict", dict(self.verdicts).get(request.subject))
        return receipt


class RandomEdits(RandomEdit):
    """The same, making many together; one that is refused fails the batch."""

    def each(self, model: Any, requests: list[EditRequest]) -> list[Edit]:
        return [self(model, request) for request in requests]


@dataclass(frozen=True)
class Deadly(RandomEdit):
    """Kills its process in the middle of a record, if it is the process to be killed."""

    survivor: int = 0
    victim: str = RECORDS[3].request.subject

    def __call__(self, model: Any, request: EditRequest) -> Edit:
        if request.subject == self.victim and os.getpid() != self.survivor:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(model, request)


def killed(work: Callable[[], Any]) -> None:
    """Do some work in a process of its own, which must not survive it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
