"""`tl-rome trace`: the library's numbers, printed, drawn and kept."""

import pytest
import torch
from support.cli import assert_is_picture, succeed, written
from support.families import KINDS

from tl_rome import causal_trace
from tl_rome.cli.demo_run import FACT
from tl_rome.patching import GaussianNoise, TraceResult, noise_scale

TEMPLATE, SUBJECT = FACT.template, FACT.subject


@pytest.mark.parametrize("kind", KINDS)
def test_trace_writes_the_librarys_numbers_and_pictures(folder, tiny, tmp_path, kind):
    out = tmp_path / "deep" / "er"
    options = ("--target", "Paris", "--samples", 2, "--seed", 3, "--model", folder, "--model-class", kind, "--out", out)
    printed = succeed("trace", TEMPLATE, SUBJECT, *options)
    names = ("resid_post", "mlp_out", "attn_out")
    figures = {"trace.png", *(f"trace_{name}.png" for name in names)}
    assert written(out) == figures | {f"trace_{name}.safetensors" for name in names}
    for figure in figures:
        assert_is_picture(out / figure)
        assert figure in printed
    model = tiny("gpt2", kind)
    noise = GaussianNoise(noise_scale(model), 2)
    for name in names:
        rng = torch.Generator().manual_seed(3)
        expected = causal_trace(model, FACT, name, generator=rng, corruption=noise, progress=False)
        found = TraceResult.load(out / f"trace_{name}.safetensors")
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-9)
        layer, position, score, _ = expected.strongest()
        assert f"{name} {layer} {position}: {expected.labels[position]!r}" in printed
        assert f"{score:.3f}" in printed


@pytest.mark.parametrize("name", ["mlp_out", "attn.hook_z", "blocks.1.hook_mlp_out"])
def test_trace_of_one_component(folder, tmp_path, name):
    options = ("--component", name, "--window", 2, "--samples", 1, "--model", folder, "--out", tmp_path)
    succeed("trace", TEMPLATE, SUBJECT, *options)
    assert written(tmp_path) == {f"trace_{name}.png", f"trace_{name}.safetensors"}
    assert TraceResult.load(tmp_path / f"trace_{name}.safetensors").window == 2


def test_text_with_markup_and_characters_without_a_glyph(folder, tmp_path):
    options = ("--component", "resid_post", "--samples", 1, "--model", folder, "--out", tmp_path)
    printed = succeed("trace", "[red]{} is [/] in 東京 $x_1$ [", SUBJECT, *options)
    assert "[red]The Eiffel Tower is [/] in 東京 $x_1$ [" in printed
    assert_is_picture(tmp_path / "trace_resid_post.png")
