"""Hooks come and go cleanly, and act as TransformerLens's own do."""

import pytest
import torch
from support.families import KINDS

from tl_rome.errors import InputError
from tl_rome.running.forward import read
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import value_hook
from tl_rome.sites import EMBED, Site

each_kind = pytest.mark.parametrize("kind", KINDS)
TOKENS = torch.arange(300, 314).view(2, 7)


class Boom(Exception):
    pass


def boom(*_args, **_kwargs):
    raise Boom


def count_hooks(model):
    on_points = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    on_modules = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    return on_points, on_modules


@each_kind
def test_hooks_are_gone_after_an_exception(tiny, kind):
    model = tiny("gpt2", kind)
    before = count_hooks(model)
    with pytest.raises(Boom), hooked(model, [value_hook(model, 1, boom)]):
        model(TOKENS)
    with pytest.raises(Boom):
        read(model, TOKENS, [Site("resid_post", 1).hook], hooks=[(EMBED, boom)])
    assert count_hooks(model) == before


@each_kind
def test_value_hook_acts_only_inside_its_context_and_on_its_layer(tiny, kind):
    model, seen = tiny("llama", kind), []
    with hooked(model, [value_hook(model, 2, seen.append)]):
        model(TOKENS)
    model(TOKENS)
    assert [tuple(value.shape) for value in seen] == [(2, 7, model.cfg.d_model)]


@each_kind
def test_hooks_do_what_those_of_transformer_lens_do(tiny, kind):
    """Also where a bridge shows another form of the activation than its module has: heads."""
    model = tiny("gpt2", kind)
    for name in ("hook_embed", "blocks.1.attn.hook_z", "blocks.2.hook_mlp_out", "blocks.3.hook_resid_post"):

        def change(activation, hook):
            return activation * torch.linspace(0, 2, activation.shape[-1])

        with model.hooks([(name, change)]):
            expected = model(TOKENS)
        with hooked(model, [(name, change)]):
            assert torch.equal(model(TOKENS), expected)


@each_kind
def test_nothing_is_left_of_hooks_that_could_not_all_be_added(tiny, kind, monkeypatch):
    from transformer_lens.hook_points import HookPoint

    model, added, own = tiny("gpt2", kind), [], HookPoint.add_hook

    def add_hook(point, *args, **kwargs):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(point)
        own(point, *args, **kwargs)

    before = count_hooks(model)
    monkeypatch.setattr(HookPoint, "add_hook", add_hook)
    hooks = [(Site("resid_post", layer).hook, lambda value, hook: None) for layer in range(4)]
    with pytest.raises(KeyboardInterrupt), hooked(model, [value_hook(model, 0, lambda value: None), *hooks]):
        raise AssertionError("the hooks were not all there")
    assert len(added) == 2
    assert count_hooks(model) == before
    with pytest.raises(InputError, match="closest"), hooked(model, [*hooks, ("blocks.0.hook_resid_pots", boom)]):
        raise AssertionError("one hook point does not exist")
    assert count_hooks(model) == before


@each_kind
def test_hooks_of_others_stay(tiny, kind):
    model, seen = tiny("gpt2", kind), []
    with model.hooks([(EMBED, lambda value, hook: seen.append("theirs"))]):
        with hooked(model, [(EMBED, lambda value, hook: seen.append("ours"))]):
            model(TOKENS)
        model(TOKENS)
    model(TOKENS)
    assert seen == ["theirs", "ours", "theirs"]
