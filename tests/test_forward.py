"""Partial runs: stopping early, and single blocks on chosen rows and positions, equal full runs of the model."""

from contextlib import contextmanager

import pytest
import torch
from families import FAMILIES, KINDS, N_LAYERS

from tl_rome.blocks import BlockRunner
from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.forward import final_logits, last_resid, read, record
from tl_rome.sites import EMBED, Site, key_hook

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
each_precision = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
LENGTH = 80  # beyond the sliding windows of 64
TOKENS = torch.randint(2, 500, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@contextmanager
def blocks_run(model):
    """Note the indices of the blocks that run, and the shapes of what they are given."""
    ran = []

    def note(layer):
        def hook_function(_block, args, kwargs):
            resid = args[0] if args else kwargs["hidden_states"]
            ran.append((layer, tuple(resid.shape[:2])))

        return hook_function

    handles = [
        block.register_forward_pre_hook(note(layer), with_kwargs=True) for layer, block in enumerate(model.blocks)
    ]
    yield ran
    for handle in handles:
        handle.remove()


def erase(activation, hook):
    return torch.zeros_like(activation)


@each_kind
@each_family
def test_read_gives_what_a_whole_run_gives(tiny, family, kind):
    model = tiny(family, kind)
    names = [EMBED, Site("attn_out", 0).hook, key_hook(1), Site("resid_post", 1).hook]
    _, cache = model.run_with_cache(TOKENS)
    with blocks_run(model) as ran:
        found = read(model, TOKENS, names)
    assert set(found) == set(names)
    assert all(torch.equal(found[name], cache[name]) for name in names)
    assert [layer for layer, _ in ran] == [0, 1], "a run stops at the last activation that is read"


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
    with pytest.raises(UnsupportedModelError, match=r"\['blocks.1.attn.hook_result'\] exist but did not fire"):
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


@each_kind
@each_family
@pytest.mark.parametrize(("layer", "start"), [(0, 0), (1, 3), (2, 70), (3, LENGTH - 1)])
def test_running_blocks_from_a_layer_and_position_equals_a_full_run(tiny, family, kind, layer, start):
    model, rows = tiny(family, kind, torch.float64), torch.tensor([2, 0, 0, 1])
    pre = Site("resid_pre", layer).hook
    found, attended = record(model, TOKENS, [pre, last_resid(model)])
    runner = BlockRunner(model, TOKENS[1:2], start)
    resid = found[pre][rows, start:]
    with blocks_run(model) as ran:
        for above in range(layer, N_LAYERS):
            resid = runner(above, resid, runner.crop(attended[above], rows))
    expected = found[last_resid(model)][rows, start:]
    assert relative_error(resid, expected) < 1e-6
    assert relative_error(final_logits(model, resid), model(TOKENS)[rows, start:]) < 1e-6
    assert ran == [(above, (4, LENGTH - start)) for above in range(layer, N_LAYERS)]


@each_kind
@each_family
@pytest.mark.parametrize(("layer", "start"), [(0, 0), (1, 9), (2, 75)])
def test_rows_that_are_padded_on_the_left_equal_rows_alone(tiny, family, kind, layer, start):
    model, padding = tiny(family, kind), torch.tensor([2, 0, 7])
    tokens = torch.where(torch.arange(LENGTH) < padding[:, None], 1, TOKENS)
    names = [Site("resid_pre", layer).hook, last_resid(model)]
    found, attended = record(model, tokens, names, padding=padding)
    runner = BlockRunner(model, tokens, start, padding)
    resid = found[names[0]][:, start:]
    for above in range(layer, N_LAYERS):
        resid = runner(above, resid, runner.crop(attended[above]))
    for row, skipped in enumerate(padding.tolist()):
        alone = read(model, TOKENS[row : row + 1, skipped:], names)
        for name in names:
            assert relative_error(found[name][row, skipped:], alone[name][0]) < 1e-4
        read_from = max(start, skipped)
        expected = alone[last_resid(model)][0, read_from - skipped :]
        assert relative_error(resid[row, read_from - start :], expected) < 1e-4


@each_kind
@each_family
def test_hooks_act_inside_single_blocks(tiny, family, kind):
    model, start, name = tiny(family, kind), 5, Site("attn_out", 2).hook

    def erase_from_start(activation, hook):
        return torch.cat([activation[:, :start], torch.zeros_like(activation[:, start:])], dim=1)

    hooks = [(name, erase_from_start)]
    plain, _ = record(model, TOKENS, [last_resid(model)])
    expected, attended = record(model, TOKENS, [last_resid(model), Site("resid_pre", 0).hook], hooks=hooks)
    runner = BlockRunner(model, TOKENS[:1], start)
    resid = expected[Site("resid_pre", 0).hook][:, start:]
    with model.hooks(fwd_hooks=[(name, erase)]):
        for layer in range(N_LAYERS):
            resid = runner(layer, resid, runner.crop(attended[layer]))
    erased = expected[last_resid(model)][:, start:]
    assert relative_error(erased, plain[last_resid(model)][:, start:]) > 0.05
    assert relative_error(resid, erased) < 1e-4


@each_kind
def test_check_passes_what_a_run_recorded_and_refuses_anything_else(tiny, kind):
    model, start = tiny("llama", kind), 4
    bottom, top = Site("resid_pre", 0).hook, last_resid(model)
    found, attended = record(model, TOKENS, [bottom, top])
    runner = BlockRunner(model, TOKENS[:1], start)
    runner.check(found[bottom][:, start:], attended, found[top][:, start:])
    with pytest.raises(UnsupportedModelError, match=r"block by block is off by \d+\.\d% from the model itself"):
        runner.check(found[bottom][:, start:], attended, found[top][[1, 0, 2], start:])


def test_a_bridge_whose_blocks_run_another_number_of_times_is_refused(fresh_tiny):
    model = fresh_tiny("gpt2", "bridge")
    model.cfg.n_layers = 3
    with pytest.raises(UnsupportedModelError, match="blocks ran 4 times, not 3"):
        BlockRunner(model, TOKENS[:1], 2)


def test_a_bridge_whose_blocks_take_no_cache_is_refused(tiny, monkeypatch):
    monkeypatch.setattr("tl_rome.blocks.run_cached", lambda model, tokens, *_: model(tokens, use_cache=False))
    with pytest.raises(UnsupportedModelError, match="take no key-value cache"):
        BlockRunner(tiny("gpt2", "bridge"), TOKENS[:1], 2)
