"""Single blocks on chosen rows and positions give what a whole run of the model gives."""

import pytest
import torch
from support.compare import relative_error
from support.families import CONFIGS, FAMILIES, KINDS, N_LAYERS, build_family

from tl_rome.errors import UnsupportedModelError
from tl_rome.models.loading import load_model
from tl_rome.running.blocks import BlockRunner
from tl_rome.running.forward import final_logits, last_resid, read, record
from tl_rome.sites import Site

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
LENGTH = 80  # beyond the sliding windows of 64
TOKENS = torch.randint(2, 500, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def deepened(config):
    config.n_layer = 6
    return config


def climb(runner, layer, resid, attended, rows=slice(None)):
    """Run all blocks from `layer` on."""
    for above in range(layer, N_LAYERS):
        resid = runner(above, resid, runner.crop(attended[above], rows))
    return resid


@each_kind
@each_family
@pytest.mark.parametrize(("layer", "start"), [(0, 0), (1, 3), (2, 70), (3, LENGTH - 1)])
def test_running_blocks_from_a_layer_and_position_equals_a_full_run(tiny, family, kind, layer, start):
    model, rows = tiny(family, kind, torch.float64), torch.tensor([2, 0, 0, 1])
    pre = Site("resid_pre", layer).hook
    found, attended = record(model, TOKENS, [pre, last_resid(model)])
    runner = BlockRunner(model, TOKENS[1:2], start)
    resid = climb(runner, layer, found[pre][rows, start:], attended, rows)
    expected = found[last_resid(model)][rows, start:]
    assert relative_error(resid, expected) < 1e-6
    assert relative_error(final_logits(model, resid), model(TOKENS)[rows, start:]) < 1e-6


@each_kind
@each_family
@pytest.mark.parametrize(("layer", "start"), [(0, 0), (1, 9), (2, 75)])
def test_rows_that_are_padded_on_the_left_equal_rows_alone(tiny, family, kind, layer, start):
    model, padding = tiny(family, kind), torch.tensor([2, 0, 7])
    tokens = torch.where(torch.arange(LENGTH) < padding[:, None], 1, TOKENS)
    names = [Site("resid_pre", layer).hook, last_resid(model)]
    found, attended = record(model, tokens, names, padding=padding)
    runner = BlockRunner(model, tokens, start, padding)
    resid = climb(runner, layer, found[names[0]][:, start:], attended)
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
    with model.hooks(fwd_hooks=[(name, lambda activation, hook: torch.zeros_like(activation))]):
        resid = climb(runner, 0, expected[Site("resid_pre", 0).hook][:, start:], attended)
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


def test_blocks_whose_output_is_unpacked_by_the_model(tmp_path, monkeypatch):
    """GPT-J takes the first part of what a block returns; it has more layers here than a stream has axes."""
    monkeypatch.setitem(CONFIGS, "gptj", lambda config=CONFIGS["gptj"]: deepened(config()))
    model = load_model(str(build_family("gptj", tmp_path)), model_class="bridge", device="cpu", progress=False)
    found, attended = record(model, TOKENS, [Site("resid_pre", 0).hook, last_resid(model)])
    runner = BlockRunner(model, TOKENS[:1], 3)
    runner.check(found[Site("resid_pre", 0).hook][:, 3:], attended, found[last_resid(model)][:, 3:])


@pytest.mark.parametrize("unpacked", [False, True])
def test_models_that_take_a_blocks_output_whole_and_such_that_take_its_first_part(tiny, monkeypatch, unpacked):
    def run_all(model, tokens, cache, mask):
        resid = torch.zeros(*tokens.shape, model.cfg.d_model)
        for block in [*model.blocks]:
            output = block(resid, past_key_values=cache)
            resid = output[0] if unpacked else output
            assert resid.shape == (*tokens.shape, model.cfg.d_model) or block is model.blocks[0]

    monkeypatch.setattr("tl_rome.running.blocks.run_cached", run_all)
    BlockRunner(tiny("gpt2", "bridge"), TOKENS[:2], 0)


def test_a_bridge_whose_blocks_run_another_number_of_times_is_refused(fresh_tiny):
    model = fresh_tiny("gpt2", "bridge")
    model.cfg.n_layers = 3
    with pytest.raises(UnsupportedModelError, match="blocks ran 4 times, not 3"):
        BlockRunner(model, TOKENS[:1], 2)


def test_a_bridge_whose_blocks_take_no_cache_is_refused(tiny, monkeypatch):
    monkeypatch.setattr("tl_rome.running.blocks.run_cached", lambda model, tokens, *_: model(tokens, use_cache=False))
    with pytest.raises(UnsupportedModelError, match="take no key-value cache"):
        BlockRunner(tiny("gpt2", "bridge"), TOKENS[:1], 2)
