"""RECT and PRUNE as parts of a mass edit, against the functions themselves and whole runs."""

from dataclasses import replace

import pytest
import torch
from support.compare import same, weights
from support.edits import CONTEXTS
from support.families import KINDS
from support.mass import LAYERS, REQUESTS, editor, subject_states

from tl_rome.editors import MEMIT, MEMIT_PRUNE, MEMIT_RECT, SharedValues
from tl_rome.editors.mass.shrink.prune import prune
from tl_rome.editors.mass.shrink.rect import rect
from tl_rome.editors.rank_one.value import optimise_values
from tl_rome.errors import InputError
from tl_rome.running.matrices import w_out

KIND = KINDS[0]


def cut_and_whole(model, config, **changes):
    values = SharedValues()
    return [replace(editor(model, each, **changes), find_values=values)(model, REQUESTS) for each in (config, MEMIT)]


@pytest.mark.parametrize("kind", KINDS)
def test_rect_keeps_part_of_the_change_that_memit_makes(fresh_tiny, kind):
    model = fresh_tiny("gptj", kind)
    before = weights(model)
    edit, whole = cut_and_whole(model, MEMIT_RECT)
    assert same(weights(model), before)
    wanted = subject_states(model, REQUESTS, LAYERS[-1])
    deltas = optimise_values(model, LAYERS[-1], [x.fact for x in REQUESTS], CONTEXTS, editor(model).config)
    wanted = wanted + torch.stack([value.delta for value in deltas]).double()
    for update, dense, receipt in zip(edit.updates, whole.updates, edit.receipt.layers, strict=True):
        weight = w_out(model, update.layer).detach()
        expected = rect(weight, dense.delta, "alphaedit")
        torch.testing.assert_close(update.delta, expected, rtol=1e-4, atol=1e-7)
        assert (update.delta != 0).double().mean() == pytest.approx(0.4, abs=0.01)
        assert receipt.relative == pytest.approx(float(update.delta.norm() / weight.double().norm()), rel=1e-4)
        assert receipt.written < whole.receipt.layers[receipt.layer - LAYERS[0]].written
    with edit.applied(model):
        left = (wanted - subject_states(model, REQUESTS, LAYERS[-1])).norm(dim=1)
    left = left / torch.stack([value.delta for value in deltas]).double().norm(dim=1)
    assert [fact.residual_left for fact in edit.receipt.facts] == pytest.approx(left.tolist(), rel=1e-3)
    assert all(x.residual_left > y.residual_left for x, y in zip(edit.receipt.facts, whole.receipt.facts, strict=True))


def test_prune_lowers_what_exceeds_the_weights_and_leaves_the_rest(fresh_tiny):
    model = fresh_tiny("llama", KIND)
    edit, whole = cut_and_whole(model, MEMIT_PRUNE, covariance_weight=1e-3, learning_rate=20.0, clamp=None)
    pruned = []
    for update, dense in zip(edit.updates, whole.updates, strict=True):
        weight = w_out(model, update.layer).detach()
        torch.testing.assert_close(update.delta, prune(weight, dense.delta), rtol=1e-4, atol=1e-7)
        pruned.append(bool(torch.linalg.svdvals(dense.delta)[0] > torch.linalg.svdvals(weight.double())[0]))
    quiet, quiet_whole = cut_and_whole(model, MEMIT_PRUNE, covariance_weight=1e6)
    for update, dense in zip(quiet.updates, quiet_whole.updates, strict=True):
        torch.testing.assert_close(update.delta, dense.delta, rtol=1e-5, atol=1e-9)
    assert any(pruned)


def test_one_cut_at_most():
    with pytest.raises(InputError, match="cut one change in two ways"):
        replace(MEMIT_RECT, prune_base="linear")
