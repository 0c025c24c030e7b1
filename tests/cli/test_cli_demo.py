"""`tl-rome demo`: how it asks a model, and the whole command as a user runs it."""

import re
import subprocess
import sys

import pytest
from support.cli import assert_is_picture, written
from support.families import KINDS

from tl_rome import Edit, score_targets
from tl_rome.cli.demo_run import FACT, NEW, ask, first_answer


@pytest.mark.parametrize(
    ("continuation", "answer"),
    [
        (" Paris, France.", "Paris"),
        (" Paris is the capital", "Paris"),
        (" New York\nThe", "New York"),
        (" Paris<|im_end|>", "Paris"),
        (" the heart of Rome. The", "the heart of Rome"),
        (" Saint-Étienne (Loire)", "Saint-Étienne"),
        (", and", ""),
        ("", ""),
    ],
)
def test_first_answer(continuation, answer):
    assert first_answer(continuation) == answer


@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_the_other_prompts(tiny, kind):
    model = tiny("gpt2", kind)
    prompts = [FACT.prompt, "Big Ben is in", "The city of"]
    together = ask(model, prompts, ["Paris", NEW])
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = ask(model, [prompt], ["Paris", NEW])
        assert answer.text == alone.text
        assert answer.probs == pytest.approx(alone.probs, rel=1e-4)
        expected = score_targets(model, [prompt], [NEW]).prob.item()
        assert answer.probs[1] == pytest.approx(expected, rel=1e-4)


def test_prompt_that_fills_the_context_is_answered(tiny):
    model = tiny("gpt2", KINDS[0])
    (answer,) = ask(model, ["city" + " of" * (model.cfg.n_ctx - 3)], ["Paris"])
    assert 0 < answer.probs[0] < 1


DEMO = """
from functools import partial
from tl_rome import cli
from tl_rome.cli import demo_run
from tl_rome.patching import GaussianNoise
demo_run.causal_trace = partial(demo_run.causal_trace, corruption=GaussianNoise(samples=2))
cli.main()
"""


@pytest.mark.slow
@pytest.mark.leg("4")
def test_demo_as_a_user_runs_it(tmp_path):
    """Traces, edits and asks the embedded model, and finds what the README says; with a fifth of the noise."""
    command = [sys.executable, "-c", DEMO, "demo", "--out", "found"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    figures = {"trace.png", "trace_resid_post.png", "trace_mlp_out.png", "trace_attn_out.png"}
    out = tmp_path / "found"
    assert written(tmp_path) == {f"found/{name}" for name in (*figures, "demo.md", "eiffel-tower-rome.safetensors")}
    for figure in figures:
        assert_is_picture(out / figure, wider_than=600)
    counts = re.search(r"paraphrases (\d+)/10, other landmarks kept (\d+)/10", finished.stdout)
    assert counts is not None, finished.stdout
    assert int(counts[1]) >= 8
    assert int(counts[2]) >= 7
    receipt = Edit.load(out / "eiffel-tower-rome.safetensors").receipt
    assert receipt.layers == (5,)
    assert receipt.prob_true is not None
    assert receipt.prob_new[0] < receipt.prob_true[0]
    assert receipt.prob_new[1] > receipt.prob_true[1]
    table = (out / "demo.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.endswith(("| yes |", "| no |"))]
    assert len(rows) == 21
    assert f"**{counts[1]}/10**" in table
    assert f"**{counts[2]}/10**" in table
