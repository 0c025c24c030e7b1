"""Several prompts traced in one go give the numbers that each gives alone."""

import pytest
import torch
from support.compare import relative_error
from support.families import FAMILY_KINDS, KINDS
from support.traces import NOISE

from tl_rome.facts import Fact
from tl_rome.patching.config import TraceConfig
from tl_rome.patching.trace import trace_together
from tl_rome.running.blocks import BlockRunner

FACTS = (
    Fact("In {} is", "Eiffel Tower"),
    Fact("The mother tongue of {} is", "Marie Curie", "Polish"),
    Fact("{} is the capital of", "Paris"),
    Fact("In {} is", "Space Needle"),
)


def together(model, facts, component, config, **options):
    generators = [torch.Generator().manual_seed(FACTS.index(fact)) for fact in facts]
    return trace_together(model, facts, component, config, generators=generators, progress=False, **options)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
@pytest.mark.parametrize(("component", "window"), [("resid_post", 1), ("attn_out", 2)])
def test_prompts_of_any_length_climb_together(tiny, family, kind, component, window):
    model = tiny(family, kind, torch.float64)
    config = TraceConfig(window=window, corruption=NOISE)
    results = together(model, FACTS, component, config)
    assert len({len(result.labels) for result in results}) > 1
    assert {result.method for result in results} == {"incremental"}
    for fact, result in zip(FACTS, results, strict=True):
        alone = together(model, [fact], component, config)[0]
        assert result.prompt == alone.prompt == fact.prompt
        assert relative_error(result.scores, alone.scores) < 1e-6
        assert result.clean_score == pytest.approx(alone.clean_score, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_targets_of_other_lengths_and_a_small_bound(tiny, kind):
    model = tiny("llama", kind, torch.float64)
    facts = [
        Fact(fact.template, fact.subject, target) for fact, target in zip(FACTS[:2], ("Rome", "Łucja"), strict=True)
    ]
    config = TraceConfig(window=2, corruption=NOISE, whole_target=True, direction="noising", max_batch_tokens=30)
    rngs = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = trace_together(model, facts, "mlp_out", config, generators=rngs, progress=False)
    for seed, (fact, result) in enumerate(zip(facts, both, strict=True)):
        rng = [torch.Generator().manual_seed(seed)]
        alone = trace_together(model, [fact], "mlp_out", config, generators=rng, progress=False)[0]
        assert relative_error(result.scores, alone.scores) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_of_prompts_of_other_lengths_are_traced_one_by_one(tiny, kind, caplog):
    model = tiny("gpt2", kind, torch.float64)
    config = TraceConfig(window=1, corruption=NOISE)
    results = together(model, FACTS[:2], "attn.hook_pattern", config)
    assert "other features for prompts of another length" in caplog.text
    for fact, result in zip(FACTS, results, strict=False):
        alone = together(model, [fact], "attn.hook_pattern", config)[0]
        assert alone.method == "incremental"
        assert relative_error(result.scores, alone.scores) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["incremental", "plain", "fallback"])
def test_chosen_positions(tiny, kind, method, monkeypatch):
    model = tiny("gpt2", kind, torch.float64)
    config = TraceConfig(window=2, corruption=NOISE, method="plain" if method == "plain" else "incremental")
    if method == "fallback":
        run = BlockRunner.__call__
        monkeypatch.setattr(BlockRunner, "__call__", lambda *args: 1.2 * run(*args))
    whole = together(model, FACTS[:1], "mlp_out", config)[0]
    last = whole.subject.last
    some = together(model, FACTS[:1], "mlp_out", config, positions=[last])[0]
    assert relative_error(some.scores[:, last], whole.scores[:, last]) < 1e-9
    others = [position for position in range(len(some.labels)) if position != last]
    assert bool((some.scores[:, others] == some.corrupted_score).all())
    assert some.method == whole.method == ("incremental" if method == "incremental" else "plain")
