"""Patching any hook point, whole or in parts, in either direction, with parts of the model severed."""

import inspect
import logging
from types import SimpleNamespace

import pytest
import torch
from support.compare import relative_error
from support.families import FAMILIES, FAMILY_KINDS, KINDS, N_HEADS, N_LAYERS
from support.traces import FACT, NOISE, trace

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.patching import LogitDifference, TraceConfig
from tl_rome.tokens import encode_fact, encode_target

each_kind = pytest.mark.parametrize("kind", KINDS)
each_pair = pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
PARALLEL = ("gptj", "neox")
INERT_PATTERN = ("gptj",)


def check_both_ways(model, component, expected_method="incremental", **options):
    swept, plain = (trace(model, component, method=method, **options) for method in ("incremental", "plain"))
    assert (swept.method, plain.method) == (expected_method, "plain")
    assert plain.effects.abs().max() > 1e-3 * abs(plain.base_score), "patching has no effect to compare"
    # 1e-5: the norms of some Hugging Face models compute in single precision whatever their weights are.
    assert relative_error(swept.scores, plain.scores) < (1e-5 if component.startswith("ln") else 1e-6)
    return swept


@each_pair
@pytest.mark.parametrize("component", ["attn.hook_z", "attn.hook_pattern", "attn.hook_k", "mlp.hook_post"])
def test_the_sweep_covers_what_is_inside_a_block(tiny, family, kind, component):
    if (component, kind) == ("attn.hook_pattern", "bridge") and family in INERT_PATTERN:
        component = "attn.hook_v"
    check_both_ways(tiny(family, kind, torch.float64), component, window=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_point_that_is_shown_but_not_used_is_warned_of(tiny, family, caplog):
    # TransformerBridge computes the attention of some families inside the Hugging Face model.
    result = trace(tiny(family, "bridge", torch.float64), "attn.hook_pattern", window=1)
    inert = float(result.effects.abs().max()) < 1e-9
    assert ("shows 'attn.hook_pattern' but does not use it" in caplog.text) is inert
    assert inert is (family in INERT_PATTERN)


@each_kind
@pytest.mark.parametrize("component", ["resid_pre", "attn.hook_q", "attn.hook_attn_scores", "ln1.hook_normalized"])
def test_the_sweep_covers_what_feeds_a_block(tiny, kind, component):
    check_both_ways(tiny("gpt2", kind, torch.float64), component, window=2)


@each_kind
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in PARALLEL])
def test_the_middle_of_a_block_is_the_stream_itself(tiny, family, kind):
    # A bridge hooks it at the second norm only; the same change of the stream is made through the attention output.
    model = tiny(family, kind, torch.float64)
    found = check_both_ways(model, "resid_mid", window=1)
    prompt = encode_fact(model, FACT)
    tokens, layer, position = prompt.tokens[None], 1, prompt.subject.last
    names = [f"blocks.{layer}.hook_{part}" for part in ("resid_pre", "attn_out")]
    clean = model.run_with_cache(tokens)[1]
    noise = NOISE(clean["hook_embed"][0, prompt.subject.slice], torch.Generator().manual_seed(0))
    answer = int(model(tokens)[0, -1].argmax())

    def corrupt(embeddings, hook):
        embeddings = embeddings.clone()
        embeddings[:, prompt.subject.slice] = noise
        return embeddings

    batch = tokens.repeat(len(noise), 1)
    before = {}
    with model.hooks([("hook_embed", corrupt), (names[0], lambda value, hook: before.update(pre=value.clone()))]):
        model(batch)
    middle = sum(clean[name][0, position] for name in names)

    def restore(attn_out, hook):
        attn_out = attn_out.clone()
        attn_out[:, position] = middle - before["pre"][:, position]
        return attn_out

    logits = model.run_with_hooks(batch, fwd_hooks=[("hook_embed", corrupt), (names[1], restore)])
    expected = logits[:, -1].softmax(-1)[:, answer].mean().item()
    assert found.scores[layer, position].item() == pytest.approx(expected, rel=1e-5)


@each_kind
@pytest.mark.parametrize("family", PARALLEL)
def test_parallel_models_have_no_middle(tiny, family, kind):
    with pytest.raises((InputError, UnsupportedModelError), match="resid_mid"):
        trace(tiny(family, kind), "resid_mid")


@each_kind
@pytest.mark.parametrize(
    ("component", "method"),
    [("blocks.2.attn.hook_z", "incremental"), ("blocks.1.hook_mlp_out", "incremental"), ("hook_embed", "plain")],
)
def test_a_full_name_is_patched_alone(tiny, kind, component, method, caplog):
    model = tiny("gpt2", kind, torch.float64)
    with caplog.at_level(logging.INFO, "tl_rome"):
        result = check_both_ways(model, component, method)
    assert result.scores.shape == (1, len(result.labels))
    assert ("lies outside the blocks" in caplog.text) is (method == "plain")
    if component.startswith("blocks."):
        layer, inner = component.removeprefix("blocks.").split(".", 1)
        every_layer = trace(model, inner.removeprefix("hook_") if "." not in inner else inner, window=1)
        assert relative_error(result.scores[0], every_layer.scores[int(layer)]) < 1e-6


@each_kind
def test_restoring_all_corrupted_embeddings_one_by_one(tiny, kind):
    model = tiny("gpt2", kind, torch.float64)
    result = trace(model, "hook_embed", fact=Fact("In {} is", " Rome"))
    assert len(result.subject) == 1
    assert result.scores[0, result.subject.last].item() == pytest.approx(result.clean_score, rel=1e-6)


# ------------------------------------------------------------------------------------------------------- directions


@each_pair
@pytest.mark.parametrize(("component", "window"), [("resid_post", 1), ("mlp_out", 2)])
def test_noising(tiny, family, kind, component, window):
    result = check_both_ways(tiny(family, kind, torch.float64), component, window=window, direction="noising")
    assert result.base_score == result.clean_score
    if component == "resid_post":
        assert result.scores[-1, -1].item() == pytest.approx(result.corrupted_score, rel=1e-6)
        assert result.scores[-1, 0].item() == pytest.approx(result.clean_score, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------ severing


@each_pair
@pytest.mark.parametrize(("sever", "component"), [("mlp", "resid_post"), ("attn", "resid_post"), ("attn", "mlp_out")])
def test_severing(tiny, family, kind, sever, component):
    model = tiny(family, kind, torch.float64)
    severed = check_both_ways(model, component, window=1, sever=sever)
    assert severed.severed == sever
    assert relative_error(severed.scores, trace(model, component, window=1).scores) > 1e-4


@each_kind
def test_severing_by_its_definition(tiny, kind):
    # As trace_with_repatch: a first corrupted run is noted, the second one has a state restored and MLPs put back.
    model = tiny("gpt2", kind, torch.float64)
    found = trace(model, "resid_post", sever="mlp")
    prompt = encode_fact(model, FACT)
    tokens, position, layer = prompt.tokens[None], prompt.subject.last, 1
    clean = model.run_with_cache(tokens)[1]
    noise = NOISE(clean["hook_embed"][0, prompt.subject.slice], torch.Generator().manual_seed(0))
    answer = int(model(tokens)[0, -1].argmax())

    def put(name, index, value):
        def hook_function(activation, hook):
            activation = activation.clone()
            activation[:, index] = value
            return activation

        return name, hook_function

    corrupt, batch, noted = put("hook_embed", prompt.subject.slice, noise), tokens.repeat(len(noise), 1), {}
    mlps = [f"blocks.{index}.hook_mlp_out" for index in range(N_LAYERS)]
    with model.hooks([corrupt, *((n, lambda v, hook, n=n: noted.update({n: v.clone()})) for n in mlps)]):
        model(batch)
    restored = put(f"blocks.{layer}.hook_resid_post", position, clean[f"blocks.{layer}.hook_resid_post"][0, position])
    frozen = [put(name, position, noted[name][:, position]) for name in mlps]
    logits = model.run_with_hooks(batch, fwd_hooks=[corrupt, restored, *frozen])
    expected = logits[:, -1].softmax(-1)[:, answer].mean().item()
    assert found.scores[layer, position].item() == pytest.approx(expected, rel=1e-6)


# --------------------------------------------------------------------------------------------------------------- units


@each_kind
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("component", "units", "count"),
    [("attn.hook_z", "heads", N_HEADS), ("attn.hook_pattern", "heads", N_HEADS), ("mlp.hook_post", [[0, 5], [3]], 2),
     ("resid_post", 16, 2), ("mlp_out", 16, 2)],
)  # fmt: skip
def test_parts_of_states(tiny, family, kind, component, units, count):
    model = tiny(family, kind, torch.float64)
    result = check_both_ways(model, component, window=2, units=units)
    assert result.scores.shape == (N_LAYERS, len(result.labels), count)
    assert len(result.units) == count
    one = result.of_unit(result.units[-1])
    assert torch.equal(one.scores, result.scores[..., -1])
    assert one.component == f"{component}[{result.units[-1]}]"


@each_kind
def test_one_unit_of_everything_is_the_whole_state(tiny, kind):
    model = tiny("gpt2", kind, torch.float64)
    whole, parts = trace(model, "attn.hook_z", window=2), trace(model, "attn.hook_z", window=2, units=N_HEADS)
    assert relative_error(parts.scores[..., 0], whole.scores) < 1e-9


# ------------------------------------------------------------------------------------------------------------- metrics


@each_kind
def test_metrics(tiny, kind):
    model = tiny("gpt2", kind, torch.float64)
    prob, logprob = trace(model), trace(model, metric="logprob")
    assert logprob.clean_score == pytest.approx(torch.tensor(prob.clean_score).log().item(), rel=1e-5)
    paris, rome = (int(encode_target(model, name)[0]) for name in ("Paris", "Rome"))
    own = trace(model, metric=lambda logits: logits[:, -1, paris] - logits[:, -1, rome])
    ours = trace(model, metric=LogitDifference.between(model, "Paris", "Rome"))
    assert torch.equal(own.scores, ours.scores)
    assert ours.metric == "logit(Paris) - logit(Rome)"
    logits = model(encode_fact(model, FACT).tokens[None])[0, -1]
    assert own.clean_score == pytest.approx((logits[paris] - logits[rome]).item(), rel=1e-6)


@each_kind
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_whole_target_is_scored_at_all_its_positions(tiny, kind, direction):
    model = tiny("llama", kind, torch.float64)
    fact = Fact(FACT.template, FACT.subject, "Łucja Rome")
    target = encode_target(model, fact.target, fact.prompt)
    assert len(target) > 2
    prompt = encode_fact(model, fact).tokens
    logprobs = model(torch.cat([prompt, target])[None])[0].log_softmax(-1)[len(prompt) - 1 : -1]
    expected = logprobs.gather(1, target[:, None]).sum()
    options = {"fact": fact, "whole_target": True, "direction": direction}
    result = check_both_ways(model, "resid_post", metric="logprob", **options)
    assert result.clean_score == pytest.approx(expected.item(), rel=1e-6)
    assert result.scores.shape == (N_LAYERS, len(prompt))
    assert result.answer.strip() == fact.target
    assert trace(model, **options).clean_score == pytest.approx(expected.exp().item(), rel=1e-6)
    check_both_ways(model, "mlp_out", window=2, **options)


# -------------------------------------------------------------------------------------------------------------- errors


@each_kind
@pytest.mark.parametrize(
    ("component", "options", "message"),
    [
        ("attn.hook_z", {"units": "neurons"}, "units 'neurons' is unknown; give 'heads', a group size"),
        ("mlp_out", {"units": "heads"}, "'mlp_out' has no heads"),
        ("mlp_out", {"units": 33}, "units of 33 do not fit 'mlp_out', which has 32"),
        ("mlp_out", {"units": [[0], [32]]}, "do not name features 0 to 31"),
        ("mlp_out", {"sever": "mlp"}, "'mlp_out' cannot be patched while 'mlp' is frozen"),
        ("mlp_out", {"whole_target": True}, "no target to score the whole of"),
        ("mlp_out", {"max_batch_tokens": 0}, "max_batch_tokens is 0; give a number of at least 1"),
        ("hook_embedd", {}, "no hook point 'blocks.0.hook_embedd'; closest: .*hook_embed"),
        ("patern", {}, "no hook point 'blocks.0.hook_patern'; closest: .*blocks.0.attn.hook_pattern"),
        ("blocks.9.hook_mlp_out", {}, "no hook point 'blocks.9.hook_mlp_out'"),
    ],
)
def test_impossible_choices_are_refused(tiny, kind, component, options, message):
    with pytest.raises(InputError, match=message):
        trace(tiny("gpt2", kind), component, **options)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("clipping", "none", "choose 'released' or 'draft'"),
        ("direction", "both", "choose 'denoising' or 'noising'"),
        ("method", "sweep", "choose 'incremental' or 'plain'"),
        ("sever", "norm", "choose 'mlp' or 'attn'"),
        ("metric", "rank", "choose 'prob', 'logprob' or a function of logits"),
    ],
)
def test_unknown_choices_are_refused(name, value, choices):
    settings = SimpleNamespace(**{**vars(TraceConfig()), name: value})
    with pytest.raises(InputError, match=f"{name} '{value}' is unknown; {choices}"):
        inspect.unwrap(TraceConfig.__post_init__)(settings)  # type checks would be first


@each_kind
@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (("z", "hook_z", "attn.hook_z"), "attn.hook_z"),
        (("post", "mlp_post", "mlp.hook_post"), "mlp.hook_post"),
        (("resid_post", "hook_resid_post"), "resid_post"),
        (("mlp_out", "hook_mlp_out"), "mlp_out"),
    ],
)
def test_every_spelling_gives_one_trace(tiny, kind, spellings, name):
    first, *others = (trace(tiny("gpt2", kind), spelling) for spelling in spellings)
    assert first.component == name
    for other in others:
        assert (other.component, other.window, other.method) == (name, first.window, "incremental")
        assert torch.equal(other.scores, first.scores)


@each_kind
def test_a_shorthand_is_refused_with_what_severs_it(tiny, kind):
    with pytest.raises(InputError, match=r"'attn.hook_z' cannot be patched while 'attn' is frozen"):
        trace(tiny("gpt2", kind), "z", sever="attn")


@each_kind
def test_a_hook_point_that_does_not_fire_is_refused(tiny, kind):
    with pytest.raises(UnsupportedModelError, match=r"did not fire .*set_use_attn_result|use_attn_result is False"):
        trace(tiny("gpt2", kind), "attn.hook_result")
