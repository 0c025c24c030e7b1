"""Attributions are those of the reference, and of plain transformers re-run from below for every layer."""

import pytest
import torch
from support import plain
from support.compare import relative_error
from support.families import FAMILIES, KINDS
from support.golden import as_text

from tl_rome.editors.knowledge_neurons.attribution import attribute_neurons
from tl_rome.editors.knowledge_neurons.scores import shared_neurons
from tl_rome.errors import InputError, NumericsError, UnsupportedModelError
from tl_rome.tokens import encode, encode_target

KIND = KINDS[0]
PROMPT, TARGET = "The Eiffel Tower is located in the city of", "Paris"
each_kind = pytest.mark.parametrize("kind", KINDS)
each_site = pytest.mark.parametrize("site", ["pre", "post"])


# ------------------------------------------------------------------------------------------------ golden data


def as_pairs(neurons):
    return [tuple(pair) for pair in neurons.tolist()]


@each_kind
@each_site
def test_equals_the_reference(golden, golden_model, kind, site):
    model, prompt = golden_model(kind), as_text(golden["ids"])
    scores = attribute_neurons(model, prompt, as_text(golden["target"]), site=site)
    assert relative_error(scores.scores, golden[f"scores_{site}"]) < 1e-9
    assert relative_error(scores.activations, golden[f"activations_{site}"]) < 1e-9
    probs = golden["logits_last"].softmax(-1)
    assert scores.prob == pytest.approx(probs[int(golden["target"])].item(), rel=1e-9)
    assert scores.predicted == int(golden["argmax_before"])
    for threshold in (0.2, 0.3):
        assert scores.above(threshold) == as_pairs(golden[f"neurons_{site}_{threshold}"])
    several = attribute_neurons(model, prompt, as_text(golden["targets"]), site=site)
    assert relative_error(several.scores, golden[f"scores_{site}_targets"]) < 1e-9
    finer = attribute_neurons(model, prompt, golden["target"][None], site=site, steps=100)
    assert relative_error(finer.scores, golden[f"scores_{site}_steps100"]) < 1e-9


@each_kind
def test_neurons_shared_by_prompts_are_those_of_the_reference(golden, golden_model, kind):
    model, target = golden_model(kind), as_text(golden["target"])
    prompts = [as_text(golden[name]) for name in ("ids", "prompt2", "prompt3")]
    several = [attribute_neurons(model, prompt, target, site="pre") for prompt in prompts]
    for share in (0.4, 0.7):
        assert shared_neurons(several, 0.2, share) == as_pairs(golden[f"neurons_pre_three_prompts_{share}"])


# ------------------------------------------------------------------------------------------------ the definition

_PARTS = {
    "pre": ("c_fc", "fc_in", "dense_h_to_4h", "gate_proj"),
    "post": ("c_proj", "fc_out", "dense_4h_to_h", "down_proj"),
}
"""The part of an MLP whose output, or input, holds the neurons before and after the activation."""


def plainly(hf, prompt, target, site, scales):
    """Scores by the definition: for each layer, the whole prompt once for each scale."""

    def part(block):
        return next(module for name, module in block.mlp.named_children() if name in _PARTS[site])

    def hook(block, function):
        if site == "pre":
            return part(block).register_forward_hook(lambda module, args, output: function(output))
        return part(block).register_forward_pre_hook(lambda module, args: (function(args[0]),))

    tokens, scores = torch.tensor([prompt] * len(scales)), []
    for block in plain.blocks(hf):
        kept = []
        handle = hook(block, lambda value, kept=kept: kept.append(value[0, -1].detach()) or value)
        hf(tokens)
        handle.remove()
        leaf = (torch.tensor(scales, dtype=kept[0].dtype)[:, None] * kept[0]).requires_grad_()
        handle = hook(block, lambda value, leaf=leaf: torch.cat([value[:, :-1], leaf[:, None]], dim=1))
        probs = hf(tokens).logits[:, -1].double().softmax(-1)[:, target].mean(-1)
        handle.remove()
        gradient = torch.autograd.grad(probs.sum(), leaf)[0].double()
        scores.append(kept[0] * gradient.sum(0) / len(scales))
    return torch.stack(scores)


@pytest.mark.parametrize("family", FAMILIES)
@each_kind
def test_equals_plain_transformers(tiny, family_dir, family, kind):
    model, hf = tiny(family, kind, torch.float64), plain.load(family_dir(family), torch.float64)
    prompt = encode(model, PROMPT).tolist()
    target = encode_target(model, "Copenhagen Lisbon", PROMPT).tolist()
    assert len(target) > 1
    for site, points, scales in (("pre", "ends", [0, 0.25, 0.5, 0.75, 1]), ("post", "left", [0, 0.25, 0.5, 0.75])):
        expected = plainly(hf, prompt, target, site, scales)
        options = {"site": site, "points": points, "steps": len(scales)}
        whole = attribute_neurons(model, PROMPT, "Copenhagen Lisbon", **options)
        assert relative_error(whole.scores, expected) < 1e-5
        # Chunks that end inside a layer's rows.
        pieces = attribute_neurons(model, PROMPT, "Copenhagen Lisbon", max_batch_tokens=3 * len(prompt), **options)
        assert relative_error(pieces.scores, whole.scores) < 1e-9


@each_kind
def test_a_prompt_of_one_token(tiny, family_dir, kind):
    model, hf = tiny("gpt2", kind, torch.float64), plain.load(family_dir("gpt2"), torch.float64)
    token = encode(model, "The").tolist()
    scores = attribute_neurons(model, "The", torch.tensor([7]), steps=3)
    assert len(token) == 1
    assert relative_error(scores.scores, plainly(hf, token, [7], "post", [0, 0.5, 1])) < 1e-5


def test_scores_of_a_layer_add_up_to_what_the_probability_loses_without_it(tiny):
    model = tiny("gpt2", KIND, torch.float64)
    scores = attribute_neurons(model, PROMPT, TARGET, points="left", steps=400)
    name, target = "blocks.2.mlp.hook_post", int(encode_target(model, TARGET, PROMPT)[0])

    def off(values, hook):
        values[:, -1] = 0
        return values

    tokens = encode(model, PROMPT)[None]
    without = model.run_with_hooks(tokens, fwd_hooks=[(name, off)])[0, -1].softmax(-1)[target].item()
    assert scores.scores[2].sum().item() == pytest.approx(scores.prob - without, rel=0.02)


# ------------------------------------------------------------------------------------------------ around it


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_agrees(fresh_tiny, tiny, kind):
    found = attribute_neurons(fresh_tiny("llama", kind, torch.bfloat16), PROMPT, TARGET, steps=5)
    exact = attribute_neurons(tiny("llama", kind), PROMPT, TARGET, steps=5)
    assert torch.cosine_similarity(found.scores.flatten(), exact.scores.flatten(), dim=0) > 0.99


@each_kind
def test_the_model_is_left_as_found_in_any_gradient_mode(fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    with torch.inference_mode():
        inside = attribute_neurons(model, PROMPT, TARGET, steps=3)
    assert torch.equal(inside.scores, attribute_neurons(model, PROMPT, TARGET, steps=3).scores)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_table_has_every_neuron_largest_first(tiny):
    scores = attribute_neurons(tiny("gpt2", KIND), PROMPT, TARGET, steps=3)
    frame = scores.to_frame()
    assert list(frame.columns) == ["layer", "neuron", "score", "activation"]
    assert len(frame) == scores.scores.numel()
    assert frame.score.is_monotonic_decreasing
    for row in (frame.iloc[0], frame.iloc[-1]):
        place = int(row.layer), int(row.neuron)
        assert (row.score, row.activation) == (scores.scores[place].item(), scores.activations[place].item())
    chosen = frame[frame.score > 0.2 * frame.score.max()]
    assert set(zip(chosen.layer, chosen.neuron, strict=True)) == set(scores.above(0.2))
    assert repr(scores).startswith("NeuronScores(' Paris' after 'The Eiffel Tower")


@pytest.mark.parametrize(
    ("prompt", "target", "message"),
    [
        (PROMPT, "  ", "target is empty"),
        (PROMPT, torch.tensor([], dtype=torch.long), "at least one token id"),
        (PROMPT, torch.tensor([600]), r"from 0 to 599"),
        ("the city of " * 60, "Paris", "shorten the text"),
        ("", "Paris", "no tokens"),
    ],
    ids=["blank", "no-token", "unknown-token", "long", "no-prompt"],
)
def test_refuses_what_cannot_be_attributed(tiny, prompt, target, message):
    with pytest.raises(InputError, match=message):
        attribute_neurons(tiny("gpt2", KIND), prompt, target)


def test_refuses_to_compare_attributions_of_different_settings(tiny):
    model = tiny("gpt2", KIND)
    with pytest.raises(InputError, match="2 attributions of 2 models"):
        shared_neurons([attribute_neurons(model, PROMPT, TARGET, steps=steps) for steps in (2, 3)])
    with pytest.raises(InputError, match="0 attributions"):
        shared_neurons([])


def test_refuses_weights_that_are_not_finite_and_models_without_neurons(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[-1])
    with torch.no_grad():
        model.blocks[0].mlp.W_out[0, 0] = float("nan")
    with pytest.raises(NumericsError):
        attribute_neurons(model, PROMPT, TARGET)
    model = fresh_tiny("gpt2", KINDS[-1])
    model.cfg.d_mlp = 8
    with pytest.raises(UnsupportedModelError, match="not one value for each of 8 neurons"):
        attribute_neurons(model, PROMPT, TARGET)
