"""What mass editors ask of the optimisation of values beyond ROME."""

from dataclasses import replace

import pytest
import torch
from support.edits import CONTEXTS, REQUEST
from support.families import KINDS

from tl_rome.editors import MEMIT, PMET
from tl_rome.editors.mass.values import with_norm_anchor
from tl_rome.editors.rank_one.value import optimise_values
from tl_rome.errors import UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.running.forward import read
from tl_rome.sites import Site
from tl_rome.tokens import encode_fact

KIND = KINDS[0]


def find(model, config, layer=1, fact=REQUEST.fact):
    return optimise_values(model, layer, [fact], CONTEXTS, config)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [MEMIT, PMET], ids=lambda config: config.preset)
def test_values_are_those_of_whole_runs(tiny, monkeypatch, kind, config):
    model, config = tiny("llama", kind), replace(config, max_evaluations=4)
    found = find(model, config)

    def refuse(*_):
        raise UnsupportedModelError("for this test")

    monkeypatch.setattr("tl_rome.editors.suffix.SuffixRunner.check", refuse)
    whole = find(model, config)
    torch.testing.assert_close(found.value, whole.value, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(found.losses, whole.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_delta_is_measured_by_the_stream_and_clamped_by_it(tiny):
    model = tiny("llama", KIND)
    found = find(model, replace(MEMIT, clamp=0.01, max_evaluations=3))
    prompt, post = encode_fact(model, REQUEST.fact), Site("resid_post", 1).hook
    state = read(model, prompt.tokens[None], [post])[post][0, prompt.subject.last]
    torch.testing.assert_close(found.initial, state, rtol=1e-4, atol=1e-5)
    assert float(found.delta.norm() / state.norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_offset_on_attention_helps_and_is_thrown_away(tiny):
    model = tiny("llama", KIND)
    settings = {"max_evaluations": 3, "norm_penalty": 0.0, "kl_factor": 0.0, "clamp": None}
    both = find(model, replace(PMET, **settings))
    alone = find(model, replace(PMET, value_site="w_out", **settings))
    assert both.losses[0]["nll"] == pytest.approx(alone.losses[0]["nll"])
    assert both.losses[1]["nll"] != alone.losses[1]["nll"]
    torch.testing.assert_close(both.initial, alone.initial)


def test_early_stop_ends_at_the_second_evaluation_that_predicts_the_target(tiny):
    model = tiny("llama", KIND)
    settings = {"max_evaluations": 40, "stop_loss": -100.0, "clamp": None, "norm_penalty": 0.0}
    fact = Fact("He saw {}", "The Eiffel Tower", "Rome")
    long, short = (find(model, replace(MEMIT, early_stop=early, **settings), 2, fact) for early in (False, True))
    assert 2 <= len(short.losses) < len(long.losses) == 40
    for ours, theirs in zip(short.losses, long.losses, strict=False):
        assert ours == pytest.approx(theirs)


def test_a_norm_anchor_scales_or_drops(tiny):
    model = tiny("llama", KIND)
    value = find(model, replace(MEMIT, max_evaluations=5))
    size = float((value.output + value.delta).norm())
    [scaled] = with_norm_anchor([value], replace(MEMIT, norm_anchor=0.8 * size))
    assert float((value.output + scaled.delta).norm()) == pytest.approx(0.8 * size, rel=1e-4)
    [dropped] = with_norm_anchor([value], replace(MEMIT, norm_anchor=0.4 * size))
    torch.testing.assert_close(dropped.value, value.initial)
    assert with_norm_anchor([value], MEMIT) == [value]
