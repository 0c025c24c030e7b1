"""Runs from one layer's W_out up give what full runs give with the same thing added there."""

import re

import pytest
import torch
from support.compare import relative_error
from support.families import FAMILIES, FAMILY_KINDS, KINDS

from tl_rome.editors.suffix import suffix_runner
from tl_rome.errors import NumericsError, UnsupportedModelError
from tl_rome.running.blocks import BlockRunner, first_run, frozen
from tl_rome.running.forward import last_resid, read
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import key_hook, value_hook

LAYER, LENGTH, START = 1, 12, 5
TOKENS = torch.randint(2, 500, (3, LENGTH), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([LENGTH, 9, 10])
PADDING = torch.tensor([0, 3, 1])
BATCH = torch.where((torch.arange(LENGTH) >= PADDING[:, None]) & (torch.arange(LENGTH) < LENGTHS[:, None]), TOKENS, 0)


def full_run(model, row, added):
    """The last block's output at START and after, of a row alone without padding, with something added there."""
    first = START - int(PADDING[row])

    def add(output):
        output = output.clone()
        output[0, first : first + len(added)] += added
        return output

    with hooked(model, [value_hook(model, LAYER, add)]):
        tokens = BATCH[row : row + 1, PADDING[row] : LENGTHS[row]]
        return read(model, tokens, [last_resid(model)])[last_resid(model)][0, first:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("span", [1, None])
def test_equals_full_runs_and_rows_may_leave(tiny, family, kind, span, caplog):
    check_equals_full_runs(tiny(family, kind), span)
    assert not caplog.text


def check_equals_full_runs(model, span):
    added = torch.randn(3, span or LENGTH - START, model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    options = {"lengths": LENGTHS, "start": START, "span": span, "padding": PADDING, "names": [key_hook(LAYER)]}
    sizes = (LENGTHS - START).tolist()
    expected = [full_run(model, row, added[row, : sizes[row]]) for row in range(3)]
    left = torch.arange(3)
    with torch.no_grad(), suffix_runner(model, BATCH, LAYER, **options) as run:
        assert set(run.found) == {key_hook(LAYER)}
        for places in ([0, 1, 2], [0, 2], [1]):
            if len(places) < len(left):
                run.keep(torch.tensor(places))
                left = left[places]
            for row, resid in zip(left.tolist(), run(added[left]), strict=True):
                assert relative_error(resid[: sizes[row]], expected[row]) < 1e-4
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def broken(monkeypatch):
    """Blocks that cannot be run by themselves."""
    monkeypatch.setattr(
        "tl_rome.running.blocks.BlockRunner.__call__", lambda self, layer, resid, past, prompts=None: resid * 1.1
    )


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
@pytest.mark.parametrize("span", [1, None])
def test_whole_runs_where_blocks_cannot_be_run_one_by_one(tiny, family, kind, span, monkeypatch, caplog):
    broken(monkeypatch)
    check_equals_full_runs(tiny(family, kind), span)
    assert (
        len(re.findall(r"block by block is off by .*; running the whole model at each step instead", caplog.text)) == 1
    )


def test_gradients_of_whole_runs_are_those_of_suffixes(tiny, monkeypatch):
    model = tiny("llama", KINDS[0])
    found = []
    for patched in (False, True):
        if patched:
            broken(monkeypatch)
        added = torch.zeros(3, 1, model.cfg.d_model, requires_grad=True)
        options = {"lengths": LENGTHS, "start": START, "span": 1, "padding": PADDING}
        with frozen(model), suffix_runner(model, BATCH, LAYER, **options) as run:
            run(added)[torch.arange(3), LENGTHS - START - 1].square().sum().backward()
        found.append(added.grad)
    assert relative_error(found[1], found[0]) < 1e-4


@pytest.mark.parametrize("error", [RuntimeError("shapes"), IndexError("dim"), TypeError("argument")])
def test_what_a_trial_run_raises_is_the_reason(error):
    with pytest.raises(UnsupportedModelError, match=rf"one by one \({type(error).__name__}: "), first_run():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("much"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        NumericsError("NaN"),
        KeyboardInterrupt(),
    ],
)
def test_what_says_nothing_about_the_model_is_left_alone(error):
    with pytest.raises(type(error)), first_run():
        raise error


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_run_with_nothing_added_is_the_trial(tiny, kind, monkeypatch):
    model, layers, own = tiny("gpt2", kind), [], BlockRunner.__call__

    def counted(self, layer, *args):
        layers.append(layer)
        return own(self, layer, *args)

    monkeypatch.setattr(BlockRunner, "__call__", counted)
    nothing, options = torch.zeros(3, 1, model.cfg.d_model), {"lengths": LENGTHS, "start": START, "span": 1}
    with torch.no_grad(), suffix_runner(model, BATCH, LAYER, **options, padding=PADDING) as run:
        found = run(nothing)
        assert layers == list(range(LAYER, model.cfg.n_layers))
        assert torch.equal(run(nothing), found)
    layers.clear()
    with torch.no_grad(), suffix_runner(model, BATCH, LAYER, **options, padding=PADDING) as run:
        assert not torch.equal(run(nothing + 1), found)
        assert len(layers) == 2 * (model.cfg.n_layers - LAYER)
