"""The sweep, the plain way and a re-implementation by the definition give the same numbers."""

import pytest
import torch
from support.compare import relative_error
from support.families import FAMILY_KINDS, KINDS, N_LAYERS
from support.traces import FACT, NOISE, trace

from tl_rome.facts import Fact
from tl_rome.patching import AddedNoise, TraceConfig
from tl_rome.patching.methods.incremental import grouped_columns
from tl_rome.patching.patch import Patch
from tl_rome.patching.traced_prompt import TracedPrompt, prepare
from tl_rome.running.blocks import BlockRunner
from tl_rome.tokens import encode_fact

SWEPT = ("resid_post", "mlp_out", "attn_out")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_pair = pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)


def both_ways(model, component, **options):
    """Relative difference of the two methods' scores, which must not all be equal."""
    swept, plain = (trace(model, component, method=method, **options) for method in ("incremental", "plain"))
    assert (swept.method, plain.method) == ("incremental", "plain")
    assert plain.effects.abs().max() > 0.02 * plain.corrupted_score, "restoring has no effect to compare"
    return relative_error(swept.scores, plain.scores)


@each_pair
@pytest.mark.parametrize(
    ("component", "window"), [("resid_post", 1), ("resid_post", 3), ("mlp_out", 3), ("attn_out", 1)]
)
def test_sweep_equals_plain(tiny, family, kind, component, window):
    assert both_ways(tiny(family, kind, torch.float64), component, window=window) < 1e-6


@each_kind
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_sweep_equals_plain_in_single_precision(tiny, family, kind):
    assert both_ways(tiny(family, kind), "mlp_out", window=2) < 1e-4


@pytest.mark.parametrize("component", SWEPT)
@pytest.mark.parametrize("clipping", ["released", "draft"])
@pytest.mark.parametrize("window", [1, 2, 4, 10])
def test_sweep_equals_plain_for_every_window(tiny, component, clipping, window):
    assert both_ways(tiny("gpt2", KINDS[0], torch.float64), component, window=window, clipping=clipping) < 1e-6


@pytest.mark.parametrize(("component", "window"), [("resid_post", 1), ("attn_out", 2)])
@pytest.mark.parametrize("method", ["incremental", "plain"])
def test_the_bound_on_rows_does_not_change_scores(tiny, component, window, method):
    model = tiny("llama", KINDS[0], torch.float64)
    expected = trace(model, component, window=window, method=method).scores
    for max_batch_tokens in (1, 6):  # one cell at a time, and three of the four
        found = trace(model, component, window=window, method=method, max_batch_tokens=max_batch_tokens).scores
        assert relative_error(found, expected) < 1e-6


@each_kind
@pytest.mark.parametrize(
    ("component", "options"),
    [
        ("resid_post", {}),
        ("mlp_out", {"window": 3, "whole_target": True}),  # columns inside the scored positions too
        ("attn_out", {"window": 2, "sever": "mlp", "whole_target": True}),
        ("z", {"window": 2, "units": "heads", "max_batch_tokens": 200}),
        ("attn.hook_pattern", {"window": 1, "direction": "noising"}),
    ],
)
def test_columns_that_climb_together_equal_columns_alone(tiny, kind, component, options, monkeypatch):
    model, fact = tiny("gpt2", kind, torch.float64), Fact("In {} is", "Eiffel Tower", "the city of Rome")
    calls, run = [], BlockRunner.__call__

    def scores(call):
        monkeypatch.setattr("tl_rome.patching.methods.incremental._CALL", call)
        monkeypatch.setattr(BlockRunner, "__call__", lambda *args: calls.append(args[1]) or run(*args))
        calls.clear()
        return trace(model, component, fact=fact, **options), len(calls)

    (alone, many), (together, few) = scores(0), scores(float("inf"))
    assert few < 0.8 * many
    assert alone.method == together.method == "incremental"
    assert relative_error(together.scores, alone.scores) < 1e-6
    plain = trace(model, component, fact=fact, method="plain", **options)
    assert relative_error(together.scores, plain.scores) < 1e-6


def test_columns_are_grouped_by_what_a_call_is_worth(tiny, monkeypatch):
    model = tiny("gpt2", KINDS[0])
    patch = Patch.make(model, "resid_post", 1, "released")
    runs = [prepare(model, FACT, TraceConfig(corruption=NOISE), torch.Generator())]
    traced = [TracedPrompt.record(run, [TraceConfig()], [], attended=False) for run in runs]

    def groups(call, max_batch_tokens=4096):
        monkeypatch.setattr("tl_rome.patching.methods.incremental._CALL", call)
        return [columns for inside, columns in grouped_columns(traced, patch, max_batch_tokens) if inside]

    cfg = model.cfg
    weights = cfg.d_model * (4 * cfg.d_head * cfg.n_heads + 3 * cfg.d_mlp)
    position = 2 * weights * 2 * 2  # two rows, half of 4 cells
    assert groups(0) == [[3], [2], [1]]
    assert groups(position) == [[3, 2], [1]]
    assert groups(2 * position) == [[3, 2, 1]]
    assert groups(2 * position, 4 * 2 * 3 * 2) == [[3, 2], [1]], "two columns' cells fit"


def trace_by_definition(model, fact, component, window, noise):
    """Scores from the subject on by the definition: one cell, one sample, one row and one whole run at a time."""
    prompt = encode_fact(model, fact)
    tokens, span = prompt.tokens[None], prompt.subject.slice
    clean_logits, clean = model.run_with_cache(tokens)
    answer = clean_logits[0, -1].argmax()

    def score(draw, layers, position):
        def corrupt(embeddings, hook):
            embeddings = embeddings.clone()
            embeddings[0, span] += draw
            return embeddings

        def restore(name):
            def hook_function(activation, hook):
                activation = activation.clone()
                activation[0, position] = clean[name][0, position]
                return activation

            return name, hook_function

        hooks = [("hook_embed", corrupt), *(restore(f"blocks.{layer}.hook_{component}") for layer in layers)]
        return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].softmax(-1)[answer].item()

    def mean_score(layers, position):
        return sum(score(draw, layers, position) for draw in noise) / len(noise)

    half = window // 2
    covered = [[k for k in range(N_LAYERS) if layer - half <= k < layer - half + window] for layer in range(N_LAYERS)]
    positions = range(span.start, tokens.shape[1])
    scores = [[mean_score(layers, position) for position in positions] for layers in covered]
    return torch.tensor(scores, dtype=torch.float64), clean_logits[0, -1].softmax(-1)[answer].item(), mean_score([], 0)


@each_kind
@pytest.mark.parametrize(
    ("family", "component", "window", "before"),
    [
        ("gpt2", "resid_post", 1, "In"),
        ("gpt2", "mlp_out", 2, "In"),
        ("gpt2", "attn_out", 3, "In"),
        ("gemma2", "mlp_out", 3, "In"),  # with a BOS token
        ("gemma2", "attn_out", 2, "the " * 66 + "the"),  # beyond its sliding window of 64
        ("mistral", "resid_post", 1, "the " * 66 + "the"),
    ],
)
def test_the_sweep_equals_the_definition(tiny, family, kind, component, window, before):
    model, fact = tiny(family, kind, torch.float64), Fact(before + " {} is", "Eiffel Tower")
    span = encode_fact(model, fact).subject
    generator = torch.Generator().manual_seed(5)
    noise = 0.7 * torch.randn(2, len(span), model.cfg.d_model, generator=generator, dtype=torch.float64)
    expected, clean, corrupted = trace_by_definition(model, fact, component, window, noise)
    result = trace(model, component, fact=fact, window=window, corruption=AddedNoise(noise))
    assert result.method == "incremental"
    assert result.clean_score == pytest.approx(clean, rel=1e-6)
    assert result.corrupted_score == pytest.approx(corrupted, rel=1e-6)
    assert relative_error(result.scores[:, span.start :], expected) < 1e-6


@each_kind
def test_the_sweep_leaves_positions_before_the_subject_exactly_at_the_corrupted_score(tiny, kind):
    result = trace(tiny("llama", kind), "mlp_out")
    assert (result.effects[:, : result.subject.start] == 0).all()


@each_kind
def test_the_sweep_runs_less(tiny, kind):
    model, work = tiny("gpt2", kind), {}
    for method in ("incremental", "plain"):
        sizes = []
        with model.hooks([("blocks.1.hook_resid_pre", lambda x, hook, sizes=sizes: sizes.append(len(x.flatten())))]):
            trace(model, "mlp_out", window=2, method=method)
        work[method] = sum(sizes)
    assert work["incremental"] < 0.6 * work["plain"]


@each_kind
def test_a_model_that_cannot_be_swept_is_traced_cell_by_cell(tiny, kind, monkeypatch, caplog):
    run = BlockRunner.__call__
    monkeypatch.setattr(BlockRunner, "__call__", lambda *args: 1.2 * run(*args))
    model = tiny("gpt2", kind, torch.float64)
    result = trace(model, "mlp_out", window=2)
    assert "off by" in caplog.text
    assert "tracing cell by cell instead" in caplog.text
    assert result.method == "plain"
    assert torch.equal(result.scores, trace(model, "mlp_out", window=2, method="plain").scores)


@each_kind
@pytest.mark.parametrize(
    "error", [RuntimeError("sizes"), IndexError("dimension 0"), AttributeError("keys"), KeyError(3)]
)
@pytest.mark.parametrize("place", ["tl_rome.patching.runs.record", "tl_rome.running.blocks.BlockRunner.__call__"])
def test_what_a_strange_model_raises_at_first_is_said_once(tiny, kind, place, error, monkeypatch, caplog):
    def fail(*_args, **_options):
        raise error

    model = tiny("gpt2", kind, torch.float64)
    expected = trace(model, "mlp_out", window=2, method="plain").scores
    caplog.clear()
    monkeypatch.setattr(place, fail)
    result = trace(model, "mlp_out", window=2)
    assert result.method == "plain"
    assert torch.equal(result.scores, expected)
    (record,) = [record for record in caplog.records if "cell by cell" in record.getMessage()]
    assert f"cannot be run one by one ({type(error).__name__}: {str(error)[:5]}" in record.getMessage()


@each_kind
def test_what_fails_later_and_a_lack_of_memory_are_not_hidden(tiny, kind, monkeypatch):
    model, run, calls = tiny("gpt2", kind), BlockRunner.__call__, []

    def fail_later(*args):
        calls.append(args)
        if len(calls) > N_LAYERS:  # the check runs each block once
            raise IndexError("later")
        return run(*args)

    monkeypatch.setattr(BlockRunner, "__call__", fail_later)
    with pytest.raises(IndexError, match="later"):
        trace(model, "mlp_out", window=2)

    def full(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(BlockRunner, "__call__", full)
    with pytest.raises(torch.OutOfMemoryError):
        trace(model, "mlp_out", window=2)
