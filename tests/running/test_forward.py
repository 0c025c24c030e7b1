"""Partial runs: what is read or computed on the way is what a whole run of the model gives."""

import pytest
import torch
from support.compare import relative_error
from support.families import FAMILIES, KINDS

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.running.forward import final_logits, last_resid, read, record
from tl_rome.running.matrices import key_hook
from tl_rome.sites import EMBED, Site

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
each_precision = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
LENGTH = 80  # beyond the sliding windows of 64
TOKENS = torch.randint(2, 500, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def erase(activation, hook):
    return torch.zeros_like(activation)


@each_kind
@each_family
def test_read_gives_what_a_whole_run_gives(tiny, family, kind):
    model = tiny(family, kind)
    names = [EMBED, Site("attn_out", 0).hook, key_hook(1), Site("resid_post", 1).hook]
    _, cache = model.run_with_cache(TOKENS)
    ran = []
    handles = [block.register_forward_pre_hook(lambda block, _: ran.append(block)) for block in model.blocks]
    found = read(model, TOKENS, names)
    for handle in handles:
        handle.remove()
    assert set(found) == set(names)
    assert all(torch.equal(found[name], cache[name]) for name in names)
    assert ran == list(model.blocks[:2]), "a run stops at the last activation that is read"


@each_kind
def test_further_hooks_act_before_an_activation_is_read(tiny, kind):
    model, name = tiny("gpt2", kind), Site("mlp_out", 1).hook
    found = read(model, TOKENS, [name, last_resid(model)], hooks=[(name, erase)])
    assert not found[name].any()
    with model.hooks([(name, erase)]):
        _, cache = model.run_with_cache(TOKENS)
    assert torch.equal(found[last_resid(model)], cache[last_resid(model)])


@each_kind
def test_an_unknown_hook_point_is_an_error_in_every_run(tiny, kind):
    for function in (read, record):
        with pytest.raises(InputError, match=r"no hook point 'blocks.0.hook_resid_pst'"):
            function(tiny("gpt2", kind), TOKENS, ["blocks.0.hook_resid_pst"])


@pytest.mark.skipif("hooked" not in KINDS, reason="a bridge refuses to hook such points, in words of its own")
def test_a_hook_point_that_never_fires_is_an_error(tiny):
    with pytest.raises(
        UnsupportedModelError, match=r"blocks.1.attn.hook_result exist but did not fire .*set_use_attn_result"
    ):
        read(tiny("gpt2", "hooked"), TOKENS, ["blocks.1.attn.hook_result", EMBED])


@each_kind
@each_family
@each_precision
def test_final_logits_are_the_models_own(tiny, family, kind, dtype, tolerance):
    model = tiny(family, kind, dtype)
    expected = model(TOKENS)
    resid = read(model, TOKENS, [last_resid(model)])[last_resid(model)]
    assert relative_error(final_logits(model, resid), expected) < tolerance
    assert relative_error(final_logits(model, resid[1, 5]), expected[1, 5]) < tolerance
    if family == "gemma2":
        assert expected.abs().max() > 0.9 * model.cfg.output_logits_soft_cap, "the soft cap does not act here"
