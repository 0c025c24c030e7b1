"""What runs at once: usual on a CPU, by free memory elsewhere; and halves where memory runs out, with equal results."""

import pytest
import torch
from support.compare import relative_error
from support.edits import REQUEST, editor
from support.evaluation import QUICK, RECORDS, RandomEdit
from support.families import KINDS
from support.traces import trace

from tl_rome.counterfact import evaluate
from tl_rome.counterfact.evaluation import evaluate as module
from tl_rome.editors import FineTune
from tl_rome.editors.finetune import FineTuneConfig
from tl_rome.facts import EditRequest
from tl_rome.running import memory
from tl_rome.running.hooks import hooked
from tl_rome.running.memory import Halving, fitting, fitting_tokens, is_out_of_memory
from tl_rome.scoring import score_targets
from tl_rome.sites import Site

KIND = KINDS[0]
GIB = 2**30
PROMPTS, TARGETS = ["In Rome is", "The city of Paris is", "A tower in"] * 2, ["big", "a city", "Rome"] * 2
REQUESTS = [REQUEST, *(EditRequest("{} is in", name, "Rome") for name in ("Siemens", "Big Ben", "The Louvre"))]


class Full:
    """A hook that runs out of memory whenever more rows than a limit are run, and counts how often."""

    def __init__(self, limit, *, training=False):
        self.limit, self.training, self.times = limit, training, 0

    def __call__(self, activation, hook):
        if len(activation) > self.limit and torch.is_grad_enabled() == self.training:
            self.times += 1
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")

    def on(self, model):
        return hooked(model, [(Site("resid_pre", 1).hook, self)])


def test_a_cpu_has_the_usual_bounds(tiny):
    model = tiny("gpt2", KIND)
    assert memory.free_memory(torch.device("cpu")) is None
    assert fitting(model, "things", usual=7, each=1, most=100) == 7
    assert fitting_tokens(model, 4096) == fitting_tokens(model, 4096, trained_from=1) == 4096


@pytest.mark.parametrize(("each", "found"), [(GIB, 4), (GIB // 4, 16), (1, 64), (100 * GIB, 1)])
def test_elsewhere_half_of_the_free_memory_decides_in_powers_of_two(tiny, monkeypatch, caplog, each, found):
    caplog.set_level("INFO", "tl_rome")
    monkeypatch.setattr(memory, "free_memory", lambda device: 11 * GIB)
    assert fitting(tiny("gpt2", KIND), "things", usual=7, each=each, most=100) == found
    assert f"{found} things at once: 11.0 GiB are free" in caplog.text


def test_tokens_grow_with_memory_and_shrink_with_what_gradients_keep(tiny, monkeypatch):
    model, found = tiny("llama", KIND), {}
    for free in (GIB // 64, GIB // 16):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        found[free] = [fitting_tokens(model, 1), fitting_tokens(model, 1, trained_from=2)]
        found[free].append(fitting_tokens(model, 1, trained_from=0))
    small, large = found.values()
    assert small[0] > small[1] > small[2] > 1
    assert large == [4 * bound for bound in small]


def test_a_batch_and_all_later_ones_are_halved(caplog):
    seen, halving = [], Halving("things")

    def work(part):
        seen.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return sum(part)

    found = [*halving(range(10), work), *halving(range(5), work)]
    assert [(list(part), result) for part, result in found] == [
        *[([0, 1, 2], 3), ([3, 4], 7), ([5, 6, 7], 18), ([8, 9], 17)],
        *[([0, 1], 1), ([2, 3], 5), ([4], 4)],
    ]
    assert seen == [10, 5, 3, 2, 3, 2, 2, 2, 1]
    assert "out of memory with 10 things at once; going on with 5" in caplog.text
    assert list(halving([], work)) == []


def test_a_single_item_that_does_not_fit_and_other_errors_are_raised():
    def fail(error):
        raise error

    for error in (torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        assert is_out_of_memory(error)
        with pytest.raises(type(error)):
            list(Halving("things")([1, 2], lambda part, error=error: fail(error)))
    with pytest.raises(RuntimeError, match="sizes"):
        list(Halving("things")([1, 2], lambda part: fail(RuntimeError("sizes"))))


@pytest.mark.parametrize("method", ["incremental", "plain"])
def test_a_trace_goes_on_in_halves(tiny, method, caplog):
    model, full = tiny("gpt2", KIND, torch.float64), Full(5)
    expected = trace(model, "mlp_out", window=2, method=method).scores
    with full.on(model):
        found = trace(model, "mlp_out", window=2, method=method)
    assert full.times
    assert found.method == method
    assert relative_error(found.scores, expected) < 1e-9
    assert "cells at once; going on with" in caplog.text


def test_scores_go_on_in_halves(tiny, caplog):
    model, full = tiny("gpt2", KIND), Full(2)
    expected = score_targets(model, PROMPTS, TARGETS)
    with full.on(model):
        found = score_targets(model, PROMPTS, TARGETS)
    assert full.times == 2, "six rows, then three"
    torch.testing.assert_close(found.logprob, expected.logprob, rtol=1e-5, atol=0)
    assert torch.equal(found.is_argmax, expected.is_argmax)


def test_fine_tuning_goes_on_in_halves(tiny, caplog):
    model, full = tiny("gpt2", KIND, torch.float64), Full(3, training=True)
    tuned = FineTune(1, FineTuneConfig(preset="ft", max_steps=3, learning_rate=5e-3))
    expected = tuned.each(model, REQUESTS)
    with full.on(model):
        found = tuned.each(model, REQUESTS)
    assert full.times == 1
    assert "out of memory with 4 requests to train at once; going on with 2" in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one.updates[0].delta, other.updates[0].delta) < 1e-6
        assert one.request == other.request


def test_values_go_on_in_halves(tiny, caplog):
    model, full = tiny("gpt2", KIND, torch.float64), Full(8, training=True)
    rome = editor(model)
    expected = rome.each(model, REQUESTS)
    with full.on(model):
        found = rome.each(model, REQUESTS)
    assert full.times == 1
    assert "requests to edit at once; going on with" in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one.updates[0].delta, other.updates[0].delta) < 1e-6


def test_an_evaluation_goes_on_in_halves_and_stays_there(tiny, caplog, monkeypatch):
    model, sizes = tiny("gpt2", KIND, torch.float64), []
    options = {"config": QUICK, "progress": False, "batch_size": 4}
    expected = evaluate(model, RECORDS, RandomEdit(), **options)
    measure = module.measure

    def small(model, records, *arguments, **named):
        sizes.append(len(records))
        if len(records) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return measure(model, records, *arguments, **named)

    monkeypatch.setattr(module, "measure", small)
    found = evaluate(model, RECORDS, RandomEdit(), **options)
    assert sizes[0] == 4
    assert max(sizes[1:]) == 2, "later batches begin where the first one ended"
    assert "out of memory with 4 records at once; going on with 2" in caplog.text
    assert [one.after.generations for one in found] == [one.after.generations for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.after.rewrite.logprob_new == pytest.approx(other.after.rewrite.logprob_new, rel=1e-6)
        assert one.error is None
