"""Sites: names of hook points, and what is said where one does not exist."""

import pytest
import torch
from support.compare import Stub
from support.families import FAMILIES, KINDS, N_LAYERS

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.running.forward import read
from tl_rome.running.matrices import b_out, key_hook, w_out
from tl_rome.sites import EMBED, Site, check_hooks, check_layer, is_hooked_transformer

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
TOKENS = torch.arange(300, 314).view(2, 7)


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
    for function in (check_layer, w_out, b_out, lambda model, layer: Site("mlp_out", layer).check(model)):
        with pytest.raises(InputError, match=rf"layer {layer} is out of range: this model has layers 0 to 3"):
            function(model, layer)
