"""Sites: keys, values and W_out are what every family and class computes with."""

from types import SimpleNamespace

import pytest
import torch
from support.compare import Stub, relative_error
from support.families import FAMILIES, KINDS, N_LAYERS

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.running.forward import read
from tl_rome.running.hooks import hooked, value_hook
from tl_rome.sites import (
    EMBED,
    Site,
    b_out,
    check_hooks,
    check_layer,
    is_hooked_transformer,
    key_hook,
    w_in,
    w_out,
)

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
TOKENS = torch.arange(300, 314).view(2, 7)


@each_kind
@each_family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_key_times_w_out_plus_bias_is_the_value(tiny, family, kind, dtype, tolerance):
    model, seen = tiny(family, kind, dtype), {}
    for layer in range(N_LAYERS):
        mlp_out = Site("mlp_out", layer).hook
        with hooked(model, [value_hook(model, layer, lambda value: seen.update(value=value))]):
            found = read(model, TOKENS, [key_hook(layer), mlp_out])
        computed = found[key_hook(layer)] @ w_out(model, layer) + b_out(model, layer)
        assert relative_error(computed, seen["value"]) < tolerance
        if family == "gemma2":  # a norm stands between the value and the residual stream
            assert relative_error(seen["value"], found[mlp_out]) > 0.1
        else:
            assert torch.equal(seen["value"], found[mlp_out])


@each_kind
@each_family
def test_replacing_the_value_equals_changing_w_out(fresh_tiny, family, kind):
    model, layer, keys = fresh_tiny(family, kind), 1, {}
    original = model(TOKENS)
    saved = w_out(model, layer).clone()
    delta = torch.randn(saved.shape, generator=torch.Generator().manual_seed(0))

    def note(key, hook):
        keys["k"] = key

    with hooked(model, [(key_hook(layer), note), value_hook(model, layer, lambda value: value + keys["k"] @ delta)]):
        replaced = model(TOKENS)
    with torch.no_grad():
        w_out(model, layer).add_(delta)
    written = model(TOKENS)
    assert relative_error(written, original) > 0.1
    assert relative_error(replaced, written) < 1e-5
    with torch.no_grad():
        w_out(model, layer).copy_(saved)
    assert torch.equal(model(TOKENS), original)


@each_kind
@each_family
def test_a_bias_stands_in_where_there_is_none(tiny, family, kind):
    bias = b_out(tiny(family, kind), 0)
    assert bias.shape == (tiny(family, kind).cfg.d_model,)
    assert bool(bias.any()) is (family in {"gpt2", "gptj", "neox"})


@each_kind
def test_the_classes_are_told_apart(tiny, kind):
    assert is_hooked_transformer(tiny("gpt2", kind)) is (kind == "hooked")


def test_another_class_is_refused_with_a_remedy():
    with pytest.raises(UnsupportedModelError, match=r"^Stub is neither .*; wrap it with tl_rome.load_model"):
        is_hooked_transformer(Stub())


@pytest.mark.parametrize(
    ("component", "hook"),
    [
        ("resid_post", "blocks.3.hook_resid_post"),
        ("attn.hook_z", "blocks.3.attn.hook_z"),
        ("mlp.hook_post", key_hook(3)),
        ("hook_resid_post", "blocks.3.hook_resid_post"),
        ("hook_mlp_out", "blocks.3.hook_mlp_out"),
        ("z", "blocks.3.attn.hook_z"),
        ("hook_z", "blocks.3.attn.hook_z"),
        ("pattern", "blocks.3.attn.hook_pattern"),
        ("attn_scores", "blocks.3.attn.hook_attn_scores"),
        ("q", "blocks.3.attn.hook_q"),
        ("post", key_hook(3)),
        ("pre", "blocks.3.mlp.hook_pre"),
        ("ln1.hook_normalized", "blocks.3.ln1.hook_normalized"),
        ("blocks.3.attn.hook_z", "blocks.3.attn.hook_z"),
        ("z3", "blocks.3.attn.hook_z"),
    ],
)
@each_kind
def test_components_are_named_as_transformer_lens_names_them(tiny, kind, component, hook):
    assert Site(component, 3).hook == hook
    assert Site(component, 3).check(tiny("gpt2", kind)) == hook


def test_spellings_of_one_component_are_equal():
    assert Site("z", 3) == Site("hook_z", 3) == Site("attn.hook_z", 3) == Site("blocks.3.attn.hook_z", 3)
    assert Site("hook_mlp_out", 3).component == Site("blocks.3.hook_mlp_out", 3).component == "mlp_out"
    with pytest.raises(InputError, match=r"'blocks.2.attn.hook_z' is not a hook point of layer 3"):
        Site("blocks.2.attn.hook_z", 3)


@each_kind
def test_close_names_are_of_the_same_block(tiny, kind):
    with pytest.raises(InputError, match=r"closest: (blocks.2.[\w.]+(, )?)+$") as caught:
        Site("mlp_outt", 2).check(tiny("gpt2", kind))
    assert "blocks.2.hook_mlp_out" in str(caught.value)


@each_kind
def test_an_unknown_hook_point_names_close_ones(tiny, kind):
    with pytest.raises(InputError, match=r"no hook point 'blocks.0.hook_mlp_ou'; closest: .*blocks.0.hook_mlp_out"):
        check_hooks(tiny("gpt2", kind), [EMBED, "blocks.0.hook_mlp_ou"])
    with pytest.raises(InputError, match=r"no hook point 'xyzzy'; closest: none"):
        read(tiny("gpt2", kind), TOKENS, ["xyzzy"])


@each_kind
@pytest.mark.parametrize("layer", [-1, N_LAYERS, 1000])
def test_a_layer_out_of_range_is_named_with_the_range(tiny, kind, layer):
    model = tiny("gpt2", kind)
    for function in (check_layer, w_in, w_out, b_out, lambda model, layer: Site("mlp_out", layer).check(model)):
        with pytest.raises(InputError, match=rf"layer {layer} is out of range: this model has layers 0 to 3"):
            function(model, layer)


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
    with pytest.raises(UnsupportedModelError, match=rf"no plain MLP output matrix of shape \(8, 4\) \(found {found}\)"):
        w_out(model, 0)
    with pytest.raises(UnsupportedModelError, match="cannot be edited"):
        b_out(model, 0)
