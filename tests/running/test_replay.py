"""Steps that are recorded on a device with graphs, with a stand-in for the device."""

import pytest
import torch

from tl_rome.running import replay
from tl_rome.running.replay import Replay


class Graph:
    """Records as `torch.cuda.graph` does: what is called inside happens once, and again at each replay."""

    replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def recording(monkeypatch):
    graphs, entered = [], []

    class Inside:
        def __init__(self, graph, **options):
            entered.append(graph)

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(replay.torch.cuda, "CUDAGraph", lambda: graphs.append(Graph()) or graphs[-1])
    monkeypatch.setattr(replay.torch.cuda, "graph", Inside)
    return graphs


def test_a_step_is_recorded_at_its_second_call_and_replayed_from_then_on(recording):
    calls = []
    step = Replay(lambda: (torch.tensor(len(calls)), calls.append(1))[:1], True)
    found = [int(step()[0]) for _ in range(5)]
    assert (len(calls), len(recording), recording[0].replays) == (2, 1, 4)
    assert found == [0, 1, 1, 1, 1]
    step.forget()
    step()
    assert (len(calls), recording[0].replays) == (3, 4)
    step()
    assert (len(calls), len(recording)) == (4, 2)


def test_what_cannot_be_recorded_runs_as_it_is(recording):
    calls = []

    def step():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (torch.tensor(len(calls)),)

    replayed = Replay(step, True)
    assert [int(replayed()[0]) for _ in range(4)] == [1, 3, 4, 5]
    assert recording[0].replays == 0


def test_elsewhere_nothing_is_recorded(recording):
    calls = []
    step = Replay(lambda: (torch.tensor(len(calls)), calls.append(1))[:1], False)
    assert [int(step()[0]) for _ in range(3)] == [0, 1, 2]
    assert recording == []
