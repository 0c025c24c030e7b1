"""One thread at a time has a model: others wait, and every result is that of the model alone."""

import signal
import threading
import time

import pytest
import torch
from support.edits import REQUEST, editor
from support.families import KINDS
from support.traces import trace

from tl_rome.editors import FineTune
from tl_rome.running import loans
from tl_rome.running.loans import lent
from tl_rome.scoring import score_targets

each_kind = pytest.mark.parametrize("kind", KINDS)
LONG = 60
"""Seconds after which a thread has got stuck."""


def together(*jobs):
    """What jobs return that begin in two threads at the same moment."""
    results, barrier = [None] * len(jobs), threading.Barrier(len(jobs))

    def run(place, job):
        barrier.wait()
        try:
            results[place] = job()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "two threads wait for each other"
    return results


def jobs_on(model):
    rome = editor(model)
    return {
        "trace": lambda: trace(model).scores,
        "rome": lambda: rome(model, REQUEST).updates[0].delta,
        "fine-tune": lambda: FineTune(layer=1)(model, REQUEST).updates[0].delta,
        "score": lambda: score_targets(model, [REQUEST.fact.prompt], ["Rome"]).logprob,
    }


@each_kind
@pytest.mark.parametrize(
    "pair", [("trace", "rome"), ("fine-tune", "score"), ("fine-tune", "fine-tune"), ("rome", "score")]
)
def test_two_threads_get_what_one_gets(fresh_tiny, kind, pair):
    jobs = jobs_on(fresh_tiny("gpt2", kind))
    expected = [jobs[name]() for name in pair]
    for found, alone in zip(together(*(jobs[name] for name in pair)), expected, strict=True):
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(alone))


@each_kind
def test_another_thread_does_not_see_an_applied_edit(fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind)
    edit = editor(model)(model, REQUEST)
    unedited, found = jobs_on(model)["score"](), []
    other = threading.Thread(target=lambda: found.append(jobs_on(model)["score"]()), daemon=True)
    with edit.applied(model):
        other.start()
        edited = jobs_on(model)["score"]()
        assert not found
    other.join(LONG)
    assert not torch.allclose(edited, unedited)
    assert torch.equal(found[0], unedited)


def test_who_waits_long_is_told_for_whom(fresh_tiny, monkeypatch, caplog):
    monkeypatch.setattr(loans, "_PATIENCE", 0.1)
    model, done = fresh_tiny("gpt2", KINDS[0]), threading.Event()

    def keep():
        with lent(model):
            done.wait(LONG)

    keeper = threading.Thread(target=keep, name="keeper", daemon=True)
    keeper.start()
    threading.Timer(0.5, done.set).start()
    while not loans._loans.get(model, loans.Loan()).depth:
        time.sleep(0.01)
    score = jobs_on(model)["score"]
    assert score().isfinite().all()
    assert "waits for thread 'keeper'" in caplog.text


def test_waiting_can_be_interrupted(fresh_tiny):
    model, done = fresh_tiny("gpt2", KINDS[0]), threading.Event()

    def keep():
        with lent(model):
            done.wait(LONG)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt), lent(model):
            raise AssertionError("the other thread still has it")
    finally:
        timer.join()
        done.set()
    keeper.join(LONG)
    with lent(model) as loan:
        assert loan.depth == 1
