"""Public functions give plain transformers' numbers for models as their owners left them, and leave them so."""

import math

import pytest
import torch
from support import plain
from support.bridges import booted
from support.families import KINDS

from tl_rome.errors import UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.generation import continue_texts, generate_to_length, sample_tokens
from tl_rome.patching import (
    AddedNoise,
    TraceConfig,
    attribution_trace,
    causal_trace,
    collect_known_facts,
    find_layer,
    noise_scale,
    replaced_subject,
    trace_facts,
    trace_together,
)
from tl_rome.scoring import ScoringPrompt, score_prompts, score_targets
from tl_rome.tokens import encode_fact

FACT = Fact("In {} is", "Eiffel Tower", "Paris")
NOISE = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(1))
CELLS = ((0, 1), (1, 2), (2, 3))
LEFT = {
    "gpt2": {"training": True},
    "gptj": {"output_attentions": True},
    "gptneo": {"output_attentions": True, "training": True},
    "bloom": {"output_attentions": True},
}
"""How the owner of each model left it."""


def look(model):
    config = model.original_model.config
    modules = [*model.modules(), *model.original_model.modules()]
    return [module.training for module in modules], config.output_attentions, vars(model).keys()


def check_cells(result, hf, prompt, answer, cells=CELLS):
    """Some cells, and both runs, as plain transformers have them."""
    tokens, subject = prompt.tokens.tolist(), prompt.subject.slice
    for layer, position in cells:
        truth = plain.restored(hf, tokens, subject, NOISE, layer, position)[:, answer].mean().item()
        assert result.scores[layer, position].item() == pytest.approx(truth, rel=1e-4)
    assert result.clean_score == pytest.approx(math.exp(plain.logprob(hf, tokens, [answer])), rel=1e-4)


@pytest.mark.parametrize("family", LEFT)
def test_traces_of_a_model_as_its_owner_left_it(family_dir, family):
    model, hf = booted(family_dir(family), **LEFT[family]), plain.load(family_dir(family))
    before, prompt = look(model), encode_fact(model, FACT)
    answer = plain.ids(model.tokenizer, " Paris")[0]
    options = {"corruption": AddedNoise(NOISE), "progress": False}
    for method in ("incremental", "plain"):
        check_cells(causal_trace(model, FACT, method=method, **options), hf, prompt, answer)
        assert look(model) == before
    approximate = attribution_trace(model, FACT, config=TraceConfig(corruption=AddedNoise(NOISE)))
    check_cells(approximate, hf, prompt, answer, cells=())
    assert look(model) == before


@pytest.mark.parametrize("family", LEFT)
def test_scores_and_texts_of_a_model_as_its_owner_left_it(family_dir, family):
    model, hf = booted(family_dir(family), **LEFT[family]), plain.load(family_dir(family))
    before, ids = look(model), plain.ids(model.tokenizer, FACT.prompt)
    truth = plain.logprob(hf, ids, plain.ids(model.tokenizer, " Paris"))
    assert score_targets(model, [FACT.prompt], ["Paris"]).logprob[0].item() == pytest.approx(truth, abs=1e-4)
    given = [ScoringPrompt.texts(model, FACT.prompt, ["Paris"])]
    assert score_prompts(model, given)[0].logprob[0].item() == pytest.approx(truth, abs=1e-4)
    written = model.tokenizer.decode(plain.greedy(hf, ids, 6))
    assert continue_texts(model, [FACT.prompt], 6, generator=torch.Generator(), top_k=1) == [written]
    assert look(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_may_end_in_the_pad_token(tiny, family_dir, kind):
    """GPT-2's pad token is the token that ends texts, and TransformerLens would hide it from the other tokens."""
    model, hf = tiny("gpt2", kind), plain.load(family_dir("gpt2"))
    fact = Fact("In {} is<|endoftext|>", "Eiffel Tower", "Paris", joiner="")
    prompt = encode_fact(model, fact)
    assert prompt.tokens[-1] == model.tokenizer.pad_token_id
    answer = plain.ids(model.tokenizer, "Paris")[0]
    last = len(prompt.tokens) - 1
    for method in ("incremental", "plain"):
        result = causal_trace(model, fact, corruption=AddedNoise(NOISE), method=method, progress=False)
        check_cells(result, hf, prompt, answer, cells=(*CELLS, (1, last)))
    gradient = attribution_trace(model, fact, config=TraceConfig(corruption=AddedNoise(1e-4 * NOISE)))
    exact = causal_trace(model, fact, corruption=AddedNoise(1e-4 * NOISE), method="plain", progress=False)
    assert (gradient.effects - exact.effects).abs().max() < 0.05 * exact.effects.abs().max()


def test_the_outermost_call_alone_checks_the_model(tiny, monkeypatch, tmp_path):
    model, checks = tiny("gpt2", KINDS[0]), []
    monkeypatch.setattr("tl_rome.running.borrowed.check_final_logits", checks.append)
    trace_facts(model, [FACT], ["mlp_out"], store=tmp_path, progress=False)
    assert checks == [model]
    with model.hooks([("blocks.0.hook_mlp_out", lambda value, hook: None)]):
        score_targets(model, [FACT.prompt], ["Paris"])
    assert checks == [model], "hooks may be made for batches of another size"


class Stranger(torch.nn.Linear):
    """A module with the parts of a HookedModel, of neither class."""

    cfg, tokenizer, blocks = None, None, ()


@pytest.mark.parametrize(
    "call",
    [
        lambda model: causal_trace(model, FACT),
        lambda model: trace_together(model, [FACT], "mlp_out", TraceConfig()),
        lambda model: attribution_trace(model, FACT),
        lambda model: collect_known_facts(model, [FACT]),
        lambda model: trace_facts(model, [FACT], store="unused"),
        lambda model: find_layer(model),
        lambda model: noise_scale(model),
        lambda model: replaced_subject(model, FACT, "Space Needle"),
        lambda model: score_targets(model, ["In"], ["Paris"]),
        lambda model: score_prompts(model, []),
        lambda model: continue_texts(model, ["In"], 1, generator=torch.Generator()),
        lambda model: sample_tokens(model, torch.zeros(1, 1, dtype=torch.long), 1, generator=torch.Generator()),
        lambda model: generate_to_length(model, [torch.zeros(1, dtype=torch.long)], 2, generator=torch.Generator()),
    ],
)
def test_a_model_of_another_class_is_refused_first(call):
    with pytest.raises(UnsupportedModelError, match="neither a HookedTransformer nor a TransformerBridge; wrap it"):
        call(Stranger(1, 1))
