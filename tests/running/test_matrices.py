"""The matrices of MLPs: their inputs, outputs and biases are what every family and class computes with."""

from types import SimpleNamespace

import pytest
import torch
from support.compare import Stub, relative_error
from support.families import FAMILIES, KINDS, N_LAYERS

from tl_rome.errors import UnsupportedModelError
from tl_rome.running.forward import read
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import (
    MlpMatrix,
    b_out,
    editable_matrices,
    input_hook,
    key_hook,
    mlp_matrices,
    output_hook,
    value_hook,
    w_out,
)
from tl_rome.sites import Site

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
TOKENS = torch.arange(300, 314).view(2, 7)
GATED = {"llama", "qwen2", "mistral", "gemma2"}


@each_kind
@each_family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_input_times_matrix_plus_bias_is_the_output(tiny, family, kind, dtype, tolerance):
    model, inputs, outputs = tiny(family, kind, dtype), {}, {}
    places = list(editable_matrices(model))
    names = ["W_gate", "W_in", "W_out"] if family in GATED else ["W_in", "W_out"]
    assert places == [MlpMatrix(layer, name) for layer in range(N_LAYERS) for name in names]

    def keep(found, place):
        return lambda value: found.update({place: value})

    hooks = [input_hook(model, place, keep(inputs, place)) for place in places]
    with hooked(model, [*hooks, *(output_hook(model, place, keep(outputs, place)) for place in places)]):
        read(model, TOKENS, [])
    for place in places:
        computed = inputs[place] @ place.weight(model) + place.bias(model)
        assert relative_error(computed, outputs[place]) < tolerance, str(place)


@each_kind
@each_family
def test_the_value_is_what_is_added_to_the_stream_but_for_a_norm(tiny, family, kind):
    model, seen = tiny(family, kind), {}
    for layer in range(N_LAYERS):
        mlp_out = Site("mlp_out", layer).hook
        with hooked(model, [value_hook(model, layer, lambda value: seen.update(value=value))]):
            found = read(model, TOKENS, [mlp_out])
        if family == "gemma2":  # a norm stands between the value and the residual stream
            assert relative_error(seen["value"], found[mlp_out]) > 0.1
        else:
            assert torch.equal(seen["value"], found[mlp_out])


@each_kind
@each_family
def test_replacing_outputs_equals_changing_the_matrices(fresh_tiny, family, kind):
    model, inputs = fresh_tiny(family, kind), {}
    original, generator = model(TOKENS), torch.Generator().manual_seed(0)
    places = mlp_matrices(model, 1)
    saved = {place: place.weight(model).clone() for place in places}
    deltas = {place: torch.randn(saved[place].shape, generator=generator) / 4 for place in places}

    def hooks(place):
        def note(value):
            inputs[place] = value

        return input_hook(model, place, note), output_hook(
            model, place, lambda out: out + inputs[place] @ deltas[place]
        )

    with hooked(model, [hook for place in places for hook in hooks(place)]):
        replaced = model(TOKENS)
    with torch.no_grad():
        for place in places:
            place.weight(model).add_(deltas[place])
    written = model(TOKENS)
    assert relative_error(written, original) > 0.1
    assert relative_error(replaced, written) < 1e-5
    with torch.no_grad():
        for place in places:
            place.weight(model).copy_(saved[place])
    assert torch.equal(model(TOKENS), original)


@each_kind
@each_family
def test_a_bias_stands_in_where_there_is_none(tiny, family, kind):
    bias = b_out(tiny(family, kind), 0)
    assert bias.shape == (tiny(family, kind).cfg.d_model,)
    assert bool(bias.any()) is (family in {"gpt2", "gptj", "neox"})


@pytest.mark.parametrize(
    ("mlp", "hook_points", "found"),
    [
        (SimpleNamespace(W_out=torch.zeros(2, 8, 4)), {key_hook(0): None}, r"\(2, 8, 4\)"),
        (SimpleNamespace(W_out=torch.zeros(4, 8)), {key_hook(0): None}, r"\(4, 8\)"),
        (SimpleNamespace(W_out=torch.zeros(8, 4)), {}, r"\(8, 4\)"),
        (SimpleNamespace(), {key_hook(0): None}, "NoneType"),
        (None, {key_hook(0): None}, "NoneType"),
    ],
    ids=["experts", "transposed", "no key hook", "no W_out", "attention only"],
)
def test_an_mlp_without_a_plain_w_out_is_refused(mlp, hook_points, found):
    cfg = SimpleNamespace(n_layers=1, d_mlp=8, d_model=4)
    model = Stub(cfg=cfg, blocks=[SimpleNamespace(mlp=mlp)], hook_dict=hook_points)
    with pytest.raises(UnsupportedModelError, match=rf"no plain MLP with W_out of shape \(8, 4\) \(found {found}\)"):
        w_out(model, 0)
    with pytest.raises(UnsupportedModelError, match="cannot be edited"):
        b_out(model, 0)


@each_kind
def test_a_plain_mlp_has_no_gate(tiny, kind):
    with pytest.raises(UnsupportedModelError, match=r"layer 1 has no plain MLP with W_gate .* \(found NoneType\)"):
        MlpMatrix(1, "W_gate").weight(tiny("gpt2", kind))
