"""`tl-rome trace` and `tl-rome average`: the library's numbers, printed, drawn and kept."""

import pytest
import torch
from support.cli import assert_is_picture, fail, succeed, written
from support.families import KINDS
from support.known import known_to

from tl_rome import GaussianNoise, TraceResult, causal_trace
from tl_rome.cli.demo_run import FACT
from tl_rome.patching import noise_scale, save_facts

TEMPLATE, SUBJECT = FACT.template, FACT.subject


@pytest.mark.parametrize("kind", KINDS)
def test_trace_writes_the_librarys_numbers_and_pictures(folder, tiny, tmp_path, kind):
    out = tmp_path / "deep" / "er"
    options = ("--target", "Paris", "--samples", 2, "--seed", 3, "--model", folder, "--kind", kind, "--out", out)
    printed = succeed("trace", TEMPLATE, SUBJECT, *options)
    names = ("hidden", "mlp", "attn")
    figures = {"trace.png", *(f"trace_{name}.png" for name in names)}
    assert written(out) == figures | {f"trace_{name}.safetensors" for name in names}
    for figure in figures:
        assert_is_picture(out / figure)
        assert figure in printed
    model = tiny("gpt2", kind)
    noise = GaussianNoise(noise_scale(model), 2)
    for name, component in zip(names, ("resid_post", "mlp_out", "attn_out"), strict=True):
        rng = torch.Generator().manual_seed(3)
        expected = causal_trace(model, FACT, component, generator=rng, corruption=noise, progress=False)
        found = TraceResult.load(out / f"trace_{name}.safetensors")
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-9)
        layer, position, score = expected.strongest()
        assert f"{name} {layer} {position}: {expected.labels[position]!r}" in printed
        assert f"{score:.3f}" in printed


def test_trace_of_one_component(folder, tmp_path):
    options = ("--component", "mlp", "--window", 2, "--samples", 1, "--model", folder, "--out", tmp_path)
    succeed("trace", TEMPLATE, SUBJECT, *options)
    assert written(tmp_path) == {"trace_mlp.png", "trace_mlp.safetensors"}
    assert TraceResult.load(tmp_path / "trace_mlp.safetensors").window == 2


def test_text_with_markup_and_characters_without_a_glyph(folder, tmp_path):
    options = ("--component", "hidden", "--samples", 1, "--model", folder, "--out", tmp_path)
    printed = succeed("trace", "[red]{} is [/] in 東京 $x_1$ [", SUBJECT, *options)
    assert "[red]The Eiffel Tower is [/] in 東京 $x_1$ [" in printed
    assert_is_picture(tmp_path / "trace_hidden.png")


def test_average_traces_what_the_model_knows_and_goes_on_where_it_was(tiny, family_dir, tmp_path):
    family = next(name for name in ("gpt2", "llama", "qwen2", "neox") if len(known_to(tiny(name, KINDS[0]), 3)) > 1)
    facts = save_facts(tmp_path / "facts.jsonl", known_to(tiny(family, KINDS[0]), 3))
    store = tmp_path / "store"
    arguments = ["average", "--model", family_dir(family), "--kind", KINDS[0], "--facts", facts, "--store", store]
    told = succeed(*arguments, "--samples", 2, "--prompts", 2)
    assert all(component in told for component in ("resid_post", "mlp_out", "attn_out"))
    assert "to edit: layer" in told
    assert_is_picture(store / "average.png")
    first = {path: path.stat().st_mtime_ns for path in store.glob("*_out/*.safetensors")}
    assert len(first) == 4
    assert succeed(*arguments, "--samples", 2, "--prompts", 2) == told
    assert {path: path.stat().st_mtime_ns for path in store.glob("*_out/*.safetensors")} == first
    assert "samples=3" in fail(*arguments, "--samples", 3, "--prompts", 2)
