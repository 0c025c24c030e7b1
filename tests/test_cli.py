"""The command line: what commands print, write and refuse, in process on a tiny model and as a user on the real one."""

import importlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import KINDS, N_LAYERS, SENTENCES
from known import known_to
from PIL import Image
from typer.testing import CliRunner, Result

from tl_rome import Edit, Fact, GaussianNoise, KeyCovariance, TraceResult, causal_trace, cli, rome, score_targets
from tl_rome.cli import app
from tl_rome.demo import FACT, NEW, ask, first_answer
from tl_rome.patching import noise_scale, save_facts

TEMPLATE, SUBJECT = FACT.template, FACT.subject
COMMANDS = ("trace", "average", "edit", "covariance", "demo")

each_kind = pytest.mark.parametrize("kind", KINDS)


def run(*arguments: Any) -> Result:
    """Call the command line in this process; any exception but an exit is raised."""
    cli._out.width, cli._out.height = 200, 50  # wide enough that no cell of a table is broken, on any terminal
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def succeed(*arguments: Any) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def fail(*arguments: Any) -> str:
    """The message of a call that must fail with an error of ours: one line, no traceback."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert result.stderr.rstrip().endswith(lines[0])
    assert "Traceback" not in result.output
    return lines[0]


def assert_is_picture(path: Path, wider_than: int = 300) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(float)
    assert pixels.shape[1] > wider_than
    assert pixels.std() > 10, "nothing is drawn"
    assert np.ptp(pixels, axis=2).max() > 50, "no colour"


def written(folder: Path) -> set[str]:
    """Names of all files below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(family_dir) -> Path:
    return family_dir("gpt2")


@pytest.fixture(scope="module")
def statistics(tiny, tmp_path_factory) -> Path:
    covariance = KeyCovariance.estimate(tiny("gpt2", KINDS[0]), 1, SENTENCES, source="sentences", progress=False)
    return covariance.save(tmp_path_factory.mktemp("statistics") / "cov.safetensors")


# ------------------------------------------------------------------------------------------------ help and version


def test_version():
    from tl_rome import __version__

    assert succeed("--version") == f"tl-rome {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    assert command in succeed("--help")
    assert f"Usage: tl-rome {command}" in succeed(command, "--help").replace("root", "tl-rome")


# ------------------------------------------------------------------------------------------------ trace


@each_kind
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


# ------------------------------------------------------------------------------------------------ edit


@each_kind
def test_edit_writes_the_librarys_edit_and_shows_what_it_did(folder, tiny, statistics, tmp_path, kind):
    out = tmp_path / "edit.safetensors"
    asked = ["The [red]Eiffel Tower[/] stands in [", "Big Ben is in"]
    printed = succeed(
        *("edit", TEMPLATE, SUBJECT, NEW, "--target-true", "Paris", "--ask", asked[0], "--ask", asked[1]),
        *("--covariance", statistics, "--seed", 1, "--model", folder, "--kind", kind, "--out", out),
    )
    assert written(tmp_path) == {"edit.safetensors"}
    model, covariance = tiny("gpt2", kind), KeyCovariance.load(statistics)
    found = Edit.load(out, model)
    expected = rome(model, TEMPLATE, SUBJECT, NEW, target_true="Paris", covariance=covariance, seed=1, progress=False)
    torch.testing.assert_close(found.updates[0].delta, expected.updates[0].delta, rtol=1e-4, atol=1e-7)
    prompts = [Fact(TEMPLATE, SUBJECT).prompt, *asked]
    before = ask(model, prompts, [NEW])
    with found.applied(model):
        after = ask(model, prompts, [NEW])
    for prompt, one, two in zip(prompts, before, after, strict=True):
        assert prompt in printed
        assert f"{one.probs[0]:.2f} → {two.probs[0]:.2f}" in printed
    assert after[0].probs[0] > before[0].probs[0]
    assert f"layer {expected.receipt.layer} (that of the covariance)" in printed


@pytest.mark.slow
def test_edit_without_statistics_samples_its_own(folder, tmp_path):
    out = tmp_path / "edit.safetensors"
    assert "own samples" in succeed("edit", TEMPLATE, SUBJECT, NEW, "--layer", 2, "--model", folder, "--out", out)
    assert Edit.load(out).updates[0].layer == 2


# ------------------------------------------------------------------------------------------------ covariance


def test_covariance_of_text_files(folder, tiny, tmp_path):
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file, half in zip(texts, (SENTENCES[:30], SENTENCES[30:]), strict=True):
        file.write_text("\n\n".join(half), encoding="utf-8")
    out = tmp_path / "cov.safetensors"
    options = ("--text", texts[0], "--text", texts[1], "--layer", 1, "--model", folder, "--out", out)
    printed = succeed("covariance", *options)
    found, model = KeyCovariance.load(out), tiny("gpt2", KINDS[0])
    lines = [f"{sentence}\n" for sentence in SENTENCES]
    lines[29], lines[-1] = SENTENCES[29], SENTENCES[-1]
    expected = KeyCovariance.estimate(model, 1, lines, source="", progress=False)
    torch.testing.assert_close(found.second_moment, expected.second_moment.float().double(), rtol=1e-5, atol=1e-6)
    assert (found.layer, found.count, found.source) == (1, expected.count, "one.txt, two.txt")
    assert f"{found.count} tokens from one.txt, two.txt, digest {found.digest}" in printed


def test_covariance_of_own_samples_follows_the_seed(folder, tiny, tmp_path):
    out = tmp_path / "cov.safetensors"
    succeed("covariance", "--tokens", 1000, "--seed", 1, "--model", folder, "--out", out)
    found, rng = KeyCovariance.load(out), torch.Generator().manual_seed(1)
    model = tiny("gpt2", KINDS[0])
    expected = KeyCovariance.from_own_samples(model, N_LAYERS // 4, generator=rng, tokens=1000, progress=False)
    assert (found.layer, found.count, found.digest) == (expected.layer, expected.count, expected.digest)
    assert found.count >= 1000


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trace", "The Eiffel Tower is in", SUBJECT), "contains '{}' 0 times"),
        (("trace", TEMPLATE, " "), "subject is empty"),
        (("trace", "{}aris is", "The P"), "subject 'The P' ends inside the token ' Paris'"),
        (("trace", TEMPLATE, SUBJECT, "--target", ""), "target is empty"),
        (("trace", TEMPLATE, SUBJECT, "--window", 0), "at least 1 layer, got 0"),
        (("trace", TEMPLATE, SUBJECT, "--samples", 0), "at least 1 sample"),
        (("trace", TEMPLATE + " of" * 200, SUBJECT), "the model's context only 128"),
        (("edit", "The Eiffel Tower is in", SUBJECT, NEW), "contains '{}' 0 times"),
        (("edit", TEMPLATE, SUBJECT, ""), "target_new is empty"),
        (("edit", TEMPLATE, SUBJECT, NEW, "--layer", N_LAYERS), f"layer {N_LAYERS} is out of range"),
        (("edit", TEMPLATE, SUBJECT, NEW, "--layer", -1), "layer -1 is out of range"),
        (("edit", TEMPLATE, SUBJECT, NEW, "--ask", ""), "has no tokens"),
        (("covariance", "--layer", 99), "layer 99 is out of range"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, arguments, message):
    out = tmp_path / "out"
    assert message in fail(*arguments, "--model", folder, "--out", out)
    assert not written(tmp_path)
    assert not out.exists()


@pytest.mark.parametrize("command", [("trace", TEMPLATE, SUBJECT), ("edit", TEMPLATE, SUBJECT, NEW), ("demo",)])
def test_unknown_model(tmp_path, monkeypatch, command):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "did you mean 'gpt2-xl'" in fail(*command, "--model", "gpt2-xxl", "--out", tmp_path / "out")
    assert "does not exist" in fail(*command, "--model", "./nowhere", "--out", tmp_path / "out")
    assert not written(tmp_path)


def test_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for command in (("trace", TEMPLATE, SUBJECT), ("edit", TEMPLATE, SUBJECT, NEW), ("covariance",), ("demo",)):
        message = fail(*command, "--model", "./nowhere", "--out", file / "below" / "it")
        assert f"{file} is not a folder" in message
    for command in (("trace", TEMPLATE, SUBJECT), ("demo",)):
        assert "is not a folder" in fail(*command, "--model", "./nowhere", "--out", file)
    for command in (("edit", TEMPLATE, SUBJECT, NEW), ("covariance",)):
        assert "it is a folder; name a file" in fail(*command, "--model", "./nowhere", "--out", tmp_path)
    assert written(tmp_path) == {"file"}
    assert file.read_text() == "mine"


def test_statistics_that_do_not_fit(folder, family_dir, statistics, tmp_path):
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--out", tmp_path / "edit", "--model")
    assert "is at layer 2" in fail(*arguments, folder, "--covariance", statistics, "--layer", 2)
    assert "belongs to the model" in fail(*arguments, family_dir("gptj"), "--covariance", statistics)
    assert "does not exist" in fail(*arguments, folder, "--covariance", tmp_path / "none")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(statistics.read_bytes()[:-100])
    assert "is damaged" in fail(*arguments, folder, "--covariance", damaged)
    assert written(tmp_path) == {"damaged"}


def test_text_that_is_not_text(folder, tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"fine\n\xff\xfe\n")
    out = tmp_path / "cov"
    assert f"cannot read {file}" in fail("covariance", "--text", file, "--model", folder, "--out", out)
    assert not out.exists()


@pytest.mark.skipif("hooked" in KINDS, reason="this TransformerLens has both classes")
def test_class_that_is_not_there(folder, tmp_path):
    assert "has no HookedTransformer" in fail("demo", "--model", folder, "--kind", "hooked", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace", TEMPLATE),
        ("trace", TEMPLATE, SUBJECT, "--component", "heads"),
        ("trace", TEMPLATE, SUBJECT, "--samples", "few"),
        ("trace", TEMPLATE, SUBJECT, "--kind", "mamba"),
        ("edit", TEMPLATE, SUBJECT, NEW, "--dtype", "int8"),
        ("edit", TEMPLATE, SUBJECT, NEW, "--nonsense"),
        ("covariance",),
        ("covariance", "--out", "x", "--text", "no-such-file"),
        ("nonsense",),
    ],
)
def test_usage_errors_are_typers(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr
    assert "Traceback" not in result.output


# ------------------------------------------------------------------------------------------------ interruptions


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("module", "function", "command"),
    [
        ("tl_rome.patching.trace", "trace_sweep", "trace"),
        ("tl_rome.editors.rome", "optimise_values", "edit"),
        ("os", "replace", "trace"),
        ("os", "replace", "edit"),
    ],
)
def test_interrupted_commands_leave_nothing(folder, statistics, tmp_path, monkeypatch, module, function, command):
    monkeypatch.setattr(importlib.import_module(module), function, interrupt)
    rest = {"trace": ("--samples", 1), "edit": (NEW, "--covariance", statistics)}[command]
    result = run(command, TEMPLATE, SUBJECT, *rest, "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code not in (0, 2)
    assert "Traceback" not in result.output
    assert not written(tmp_path)


@pytest.mark.slow
def test_ctrl_c_in_a_real_run(folder, tmp_path):
    command = [sys.executable, "-m", "tl_rome.cli", "trace", TEMPLATE, SUBJECT, "--model", str(folder)]
    command += ["--samples", "20000", "--component", "mlp", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = ""
    while "trace mlp_out" not in seen:
        character = process.stderr.read(1)
        assert character, f"ended before it could be interrupted: {seen}"
        seen += character
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    assert "Traceback" not in seen + rest
    assert not written(tmp_path)


# ------------------------------------------------------------------------------------------------ averages


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


# ------------------------------------------------------------------------------------------------ the demo


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


@each_kind
def test_answers_do_not_depend_on_their_company(tiny, kind):
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


@pytest.mark.slow
def test_demo_as_a_user_runs_it(tmp_path):
    """Traces, edits and asks the embedded model, and finds what the README says."""
    command = [sys.executable, "-m", "tl_rome.cli", "demo", "--out", "found"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    figures = {"trace.png", "trace_hidden.png", "trace_mlp.png", "trace_attn.png"}
    out = tmp_path / "found"
    assert written(tmp_path) == {f"found/{name}" for name in (*figures, "demo.md", "eiffel-tower-rome.safetensors")}
    for figure in figures:
        assert_is_picture(out / figure, wider_than=600)
    counts = re.search(r"paraphrases (\d+)/10, other landmarks kept (\d+)/10", finished.stdout)
    assert counts is not None, finished.stdout
    assert int(counts[1]) >= 8
    assert int(counts[2]) >= 8
    receipt = Edit.load(out / "eiffel-tower-rome.safetensors").receipt
    assert receipt.layer == 5
    assert receipt.prob_true is not None
    assert receipt.prob_new[0] < receipt.prob_true[0]
    assert receipt.prob_new[1] > receipt.prob_true[1]
    table = (out / "demo.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.endswith(("| yes |", "| no |"))]
    assert len(rows) == 21
    assert f"**{counts[1]}/10**" in table
    assert f"**{counts[2]}/10**" in table
