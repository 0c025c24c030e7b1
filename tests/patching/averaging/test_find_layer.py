"""`layer=find_layer`: the layer that tracing of known facts suggests."""

import pytest
import torch
from support.families import KINDS
from support.known import known_to

from tl_rome.editors.layers import choose_layer
from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching import GaussianNoise, TraceConfig, average_traces, causal_trace, load_sample_facts
from tl_rome.patching.averaging.layer import find_layer

NOISE = GaussianNoise(0.7, samples=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_that_of_the_full_traces_average(tiny, kind):
    model = next(m for f in ("gpt2", "llama", "qwen2", "neox") if len(known_to(m := tiny(f, kind), 4)) >= 2)
    facts = known_to(model, 4)
    config = TraceConfig(window=2, corruption=NOISE)
    found = find_layer(model, facts, prompts=4, config=config, progress=False)
    rng = torch.Generator().manual_seed(0)
    seeds = [int(torch.randint(2**62, (), generator=rng)) for _ in facts]
    traces = [
        causal_trace(
            model, fact, "mlp_out", generator=torch.Generator().manual_seed(seed), window=2, corruption=NOISE,
            progress=False,
        )
        for fact, seed in zip(facts, seeds, strict=True)
    ]  # fmt: skip
    average = average_traces(traces)
    peak = average.peak("last subject token")
    assert (found.layer, found.n) == (peak.layer, len(facts))
    assert choose_layer(model, found)[0] == found.layer


def test_too_few_known_facts_are_refused(tiny):
    model = tiny("gpt2", KINDS[0])
    with pytest.raises(InputError, match="the model knows 0 of the facts; give facts that it knows, or name a layer"):
        find_layer(model, [Fact("In {} is", "Rome", "Łucja")], progress=False)


def test_the_packages_own_facts_are_many_and_asked_once_each():
    facts = load_sample_facts()
    assert len(facts) > 200
    assert len({(fact.subject, fact.target) for fact in facts}) == len(facts)
    assert all(fact.target for fact in facts)


@pytest.mark.leg("4")
def test_the_function_is_taken_as_a_layer_on_the_real_model(smollm2, monkeypatch):
    few = [fact for fact in load_sample_facts() if fact.target == "Paris"][
        :3
    ]  # all of them would take a minute and a half
    monkeypatch.setattr("tl_rome.patching.averaging.layer.load_sample_facts", lambda: few)
    layer, why = choose_layer(smollm2(KINDS[-1]), find_layer)
    assert 0 <= layer < 20
    assert why.startswith("suggested: layer")
    assert "over 3 prompts" in why
