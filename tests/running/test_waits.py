"""Nothing waits for the device in an inner loop: what is read from it does not grow with positions, cells or steps."""

import pytest
import torch
from support.families import KINDS
from support.traces import trace
from torch.utils._python_dispatch import TorchDispatchMode

from tl_rome.facts import Fact
from tl_rome.generation import generate_to_length
from tl_rome.patching import noise_scale
from tl_rome.scoring import ScoringPrompt, score_prompts

READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default")
each_kind = pytest.mark.parametrize("kind", KINDS)


class Waits(TorchDispatchMode):
    """Counts operations that would wait for an accelerator: single numbers read, and shapes that depend on values."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, move = 0, torch.Tensor.cpu

        def counted(tensor, *arguments, **options):
            self.count += 1
            return move(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, "cpu", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) in READS
        return func(*args, **kwargs or {})


@pytest.fixture
def waits(monkeypatch):
    """Give `waits(work)`: how often some work would wait."""

    def count(work):
        with monkeypatch.context() as patched, Waits(patched) as found:
            work()
        return found.count

    return count


@each_kind
@pytest.mark.parametrize("component", ["resid_post", "mlp_out", "attn_out"])
def test_a_trace_waits_as_often_for_many_positions_and_cells(tiny, kind, component, waits):
    model, short, long = tiny("gpt2", kind), Fact("{} is", "Rome"), Fact("{} is in the city of the", "The Eiffel Tower")
    few = waits(lambda: trace(model, component, fact=short))
    assert few > 0
    assert waits(lambda: trace(model, component, fact=long, max_batch_tokens=20)) == few


@each_kind
def test_scores_wait_as_often_for_many_prompts(tiny, kind, waits):
    model = tiny("gpt2", kind)
    given = [ScoringPrompt(torch.arange(5, 8 + row % 3), (torch.tensor([7, row + 1]),)) for row in range(40)]
    few = waits(lambda: score_prompts(model, given[:1]))
    assert waits(lambda: score_prompts(model, given, max_batch_tokens=30)) == few


@each_kind
def test_sampling_reads_a_few_candidates_a_step(tiny, kind, waits):
    model, draws = tiny("gpt2", kind), torch.Generator()
    counts = [
        waits(lambda n=n: generate_to_length(model, [torch.arange(5, 9)] * 6, n, generator=draws)) for n in (10, 30)
    ]
    assert counts[1] - counts[0] <= 20 * 4, "values, tokens, and two checks that stay on the CPU"


@each_kind
def test_the_noise_scale_is_measured_in_one_run(tiny, kind, waits):
    model, names = tiny("gpt2", kind), ("Rome", "Paris", "The Eiffel Tower") * 9
    assert waits(lambda: noise_scale(model, names)) == waits(lambda: noise_scale(model, names[:1]))
