"""A store of traces tells metrics and corruptions apart by what they do, not by what they are called."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from support.families import KINDS
from support.traces import FACT, NOISE

from tl_rome.errors import InputError, StorageError
from tl_rome.patching import AddedNoise, LogitDifference, UniformNoise
from tl_rome.patching.averaging.trace_facts import trace_facts
from tl_rome.patching.config import TraceConfig

CONFIG = TraceConfig(corruption=NOISE, window=2)


def trace_all(model, store, **options):
    return trace_facts(model, [FACT], ("mlp_out",), store=store, **{"config": CONFIG, "progress": False, **options})


def closure(token):
    return lambda logits: logits[:, -1, token]


def logit(logits, token):
    return logits[:, -1, token]


class Logit:
    def __init__(self, token):
        self.token = token

    def __call__(self, logits):
        return logits[:, -1, self.token]

    def score(self, logits):
        return logits[:, -1, self.token]


class Opened(Logit):
    def __init__(self, token):
        super().__init__(token)
        self.opened = (each for each in [token])


class Identified(Opened):
    def identity(self):
        return {"logit of": self.token}


class Scaled:
    needs_generator = False

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, embeddings, generator):
        return (embeddings * self.factor)[None]


@dataclass(frozen=True)
class Token:
    token: int
    after: tuple[float, ...] = (0.5,)

    def __call__(self, logits):
        return logits[:, -1, self.token]


def weighted(value):
    weights = torch.full((4,), value)
    return lambda logits: logits[:, -1, :4] @ weights


METRICS = {
    "closure": closure,
    "partial": lambda token: partial(logit, token=token),
    "object": Logit,
    "bound": lambda token: Logit(token).score,
    "dataclass": Token,
    "tensor": lambda token: weighted(1 + token / 1e6),
}
CORRUPTIONS = {
    "object": Scaled,
    "tensor": lambda value: AddedNoise(torch.full((2, 2, 32), 1 + value / 1e6)),
}


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_a_metric_with_another_state_does_not_read_the_firsts_traces(tiny, tmp_path, make):
    model = tiny("gpt2", KINDS[0])
    [first] = trace_all(model, tmp_path, metric=make(5))["mlp_out"]
    [again] = trace_all(model, tmp_path, metric=make(5))["mlp_out"]
    assert torch.equal(again.scores, first.scores)
    with pytest.raises(StorageError, match="was made with metric"):
        trace_all(model, tmp_path, metric=make(6))


@pytest.mark.parametrize("make", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_a_corruption_with_another_state_does_not_read_the_firsts_traces(tiny, tmp_path, make):
    model = tiny("gpt2", KINDS[0])
    first, other = (replace(CONFIG, corruption=make(value)) for value in (2.0, 3.0))
    assert len(trace_all(model, tmp_path, config=first)["mlp_out"]) == 1
    assert len(trace_all(model, tmp_path, config=first)["mlp_out"]) == 1
    with pytest.raises(StorageError, match="was made with corruption"):
        trace_all(model, tmp_path, config=other)


def test_what_says_all_of_itself_is_kept_as_it_reads():
    for metric, text in (
        ("logprob", "logprob"),
        (LogitDifference(3, 5), "LogitDifference(token=3, other=5)"),
        (Token(3), "Token(token=3, after=(0.5,))"),
    ):
        assert TraceConfig(metric=metric).describe()["metric"] == text
    described = TraceConfig(corruption=UniformNoise(0.5, samples=2), units=[[0, 1]]).describe()
    assert described["corruption"] == "UniformNoise(sigma=0.5, samples=2)"
    assert (described["units"], TraceConfig().describe()["corruption"]) == ("[[0, 1]]", None)


def test_a_metric_that_cannot_be_described_is_refused_unless_it_says_what_it_is(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    with pytest.raises(InputError, match=r"the metric Opened holds builtins.generator, .* a method identity\(\)"):
        trace_all(model, tmp_path, metric=["prob", Opened(5)])
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert len(trace_all(model, tmp_path, metric=Identified(5))["mlp_out"]) == 1
    with pytest.raises(StorageError, match=r"metric \{'logit of': 5\}, not \{'logit of': 6\}"):
        trace_all(model, tmp_path, metric=Identified(6))


@pytest.mark.parametrize("name", ["settings.json", "failed", "locks"])
def test_a_metric_cannot_be_called_what_a_store_calls_its_own(tiny, tmp_path, name):
    with pytest.raises(InputError, match=f"{name!r} cannot be a folder's name"):
        trace_all(tiny("gpt2", KINDS[0]), tmp_path / "new", metric={name: "prob"})
    assert not (tmp_path / "new").exists()
