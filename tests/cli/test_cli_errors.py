"""Help, and what the commands refuse or leave behind when interrupted: one line, no traceback, no file."""

import importlib
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest
from support.cli import fail, run, succeed, written
from support.families import KINDS, N_LAYERS

from tl_rome.cli.demo_run import FACT, NEW

TEMPLATE, SUBJECT = FACT.template, FACT.subject
COMMANDS = (
    "demo",
    "trace",
    "average",
    "edit",
    "covariance",
    "export",
    "table3",
    "sweep",
    "multi",
    "generate",
)


def test_version():
    from tl_rome import __version__

    assert succeed("--version") == f"tl-rome {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    assert command in succeed("--help")
    assert f"Usage: tl-rome {command}" in succeed(command, "--help").replace("root", "tl-rome")


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


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("module", "function", "command"),
    [
        ("tl_rome.patching.trace", "trace_incremental", "trace"),
        ("tl_rome.editors.rank_one.value", "_optimise", "edit"),
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
@pytest.mark.leg("4")
def test_ctrl_c_in_a_real_run(folder, tmp_path):
    command = [sys.executable, "-m", "tl_rome.cli", "trace", TEMPLATE, SUBJECT, "--model", str(folder)]
    command += ["--samples", "20000", "--component", "mlp", "--out", str(tmp_path / "out")]
    # A shell has programs that it runs in the background ignore Ctrl-C, and so would their children.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=listen) as process:
        try:
            assert process.stderr is not None
            seen = ""
            while "trace mlp_out" not in seen:
                character = process.stderr.read(1)
                assert character, f"ended before it could be interrupted: {seen}"
                seen += character
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode not in (0, 2)
    assert "Traceback" not in seen + rest
    assert not written(tmp_path)
