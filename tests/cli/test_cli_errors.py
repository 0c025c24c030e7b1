"""Help, and what the commands refuse or leave behind when interrupted: one line, no traceback, no file."""

import importlib
import os
import signal
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.cli import fail, run, succeed, written
from support.families import KINDS, N_LAYERS

from tl_rome.cli.demo_run import FACT, NEW

TEMPLATE, SUBJECT = FACT.template, FACT.subject
WORK = {
    "demo": (),
    "trace": (TEMPLATE, SUBJECT),
    "trace-many": (),
    "edit": (TEMPLATE, SUBJECT, NEW),
    "covariance": (),
    "train": ("ke-cf",),
    "export": ("edit",),
    "compare": (),
    "sweep": (),
    "localization": ("--editor", "ft"),
    "sequential": (),
    "mass": (),
    "generate": ("--record", 1),
}
"""What each command needs, apart from `--out`."""


def test_version():
    from tl_rome import __version__

    assert succeed("--version") == f"tl-rome {__version__}"


@pytest.mark.parametrize("command", [*WORK, "push"])
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
        (("trace", TEMPLATE, SUBJECT, "--component", "heads"), "no hook point 'blocks.0.hook_heads'"),
        (("trace", TEMPLATE, SUBJECT, "--device", "banana"), "device 'banana' cannot be used"),
        (("edit", TEMPLATE, SUBJECT, NEW, "--device", "cuda:99"), "device 'cuda:99' cannot be used"),
        (("compare", "--device", "banana"), "device 'banana' cannot be used"),
        (("trace", TEMPLATE, SUBJECT, "--window", 0), "window is 0; give a number of at least 1"),
        (("trace", TEMPLATE, SUBJECT, "--samples", 0), "samples is 0; give a number of at least 1"),
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


@pytest.mark.parametrize("command", WORK)
def test_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path, command):
    file = tmp_path / "file"
    file.write_text("mine")
    arguments = (command, *WORK[command], "--model", "./nowhere", "--out")
    assert f"{file} is not a folder" in fail(*arguments, file / "below" / "it")
    if command in ("edit", "covariance", "train"):
        assert "it is a folder; name a file" in fail(*arguments, tmp_path)
    else:
        assert "is not a folder" in fail(*arguments, file)
    assert written(tmp_path) == {"file"}
    assert file.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder in which not even the superuser can make a file")
@pytest.mark.parametrize("command", WORK)
def test_a_file_system_that_refuses_is_noticed_before_the_model_is_loaded(command):
    message = fail(command, *WORK[command], "--model", "./nowhere", "--out", "/proc/nope")
    assert "/proc is not a folder that can be written to" in message


def test_statistics_that_do_not_fit(folder, family_dir, statistics, tmp_path):
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--out", tmp_path / "edit", "--model")
    assert "is at layer 2" in fail(*arguments, folder, "--covariance", statistics, "--layer", 2)
    assert "belongs to the model" in fail(*arguments, family_dir("gptj"), "--covariance", statistics)
    assert "does not exist" in fail(*arguments, folder, "--covariance", tmp_path / "none")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(statistics.read_bytes()[:-100])
    assert "is damaged" in fail(*arguments, folder, "--covariance", damaged)
    assert written(tmp_path) == {"damaged"}


@pytest.mark.parametrize("command", [("compare", "--workers", 1), ("sequential",), ("generate", "--record", 0)])
def test_layer_and_statistics_of_editors_that_are_compared(folder, statistics, tmp_path, command):
    arguments = (*command, "--editors", "ft,rome", "--covariance", statistics, "--layer", 2, "--model", folder)
    assert "is at layer 2" in fail(*arguments, "--out", tmp_path / "out")


def test_text_file_that_is_not_utf8(folder, tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"fine\n\xff\xfe\n")
    out = tmp_path / "cov"
    assert f"cannot read {file}" in fail("covariance", "--text", file, "--model", folder, "--out", out)
    assert not out.exists()


@pytest.mark.skipif("hooked" in KINDS, reason="this TransformerLens has both classes")
def test_class_that_this_transformer_lens_lacks(folder, tmp_path):
    assert "has no HookedTransformer" in fail(
        "demo", "--model", folder, "--model-class", "hooked", "--out", tmp_path / "out"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace", TEMPLATE),
        ("edit", TEMPLATE, SUBJECT, NEW, "--editor", "mendel"),
        ("edit", TEMPLATE, SUBJECT, NEW, "--layer", "deep"),
        ("trace", TEMPLATE, SUBJECT, "--samples", "few"),
        ("trace", TEMPLATE, SUBJECT, "--model-class", "mamba"),
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
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in result.output
    assert not written(tmp_path)


@pytest.mark.parametrize("command", ["trace-many", "compare", "sweep", "localization", "sequential", "mass"])
def test_interrupted_commands_that_resume_say_so(tmp_path, monkeypatch, command):
    monkeypatch.setattr("tl_rome.models.loading.load_model", interrupt)
    options = {"compare": ("--workers", 1), "localization": ("--editor", "ft")}.get(command, ())
    result = run(command, *options, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert "Traceback" not in result.output


def interrupted_at(mark: str, *arguments: Any) -> tuple[int, str]:
    """Run a command in a terminal of its own, send Ctrl-C to its processes once a text is shown; exit code and output.

    A shell has programs that it runs in the background ignore Ctrl-C, and so would their children.
    """
    command = [sys.executable, "-m", "tl_rome.cli", *map(str, arguments)]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    ours, theirs = os.openpty()  # progress bars are drawn on terminals alone
    termios.tcsetwinsize(theirs, (40, 160))
    seen = ""
    try:
        options: dict[str, Any] = {"start_new_session": True, "preexec_fn": listen, "stdin": subprocess.DEVNULL}
        options["env"] = {**os.environ, "TERM": "dumb"}  # no colours
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, **options) as process:
            os.close(theirs)
            try:
                while text := _read(ours):
                    if mark not in seen and mark in seen + text:
                        time.sleep(0.2)
                        os.killpg(process.pid, signal.SIGINT)
                    seen += text
                return process.wait(timeout=60), seen
            finally:
                process.kill()
    finally:
        os.close(ours)


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # how Linux reports a terminal that no process has open
        return ""


@pytest.mark.slow
@pytest.mark.leg("4")
def test_ctrl_c_in_a_real_run(folder, tmp_path):
    options = ("--samples", 20000, "--component", "mlp_out", "--out", tmp_path / "out")
    code, seen = interrupted_at("trace mlp_out", "trace", TEMPLATE, SUBJECT, "--model", folder, *options)
    assert code == 130, seen
    assert seen.rstrip().endswith("interrupted")
    assert "Traceback" not in seen
    assert not written(tmp_path)


@pytest.mark.slow
@pytest.mark.leg("3.9")
def test_ctrl_c_in_a_comparison_by_several_processes(folder, tmp_path):
    options = ("--model", folder, "--workers", 2, "--batch-size", 1, "--out", tmp_path / "out")
    code, seen = interrupted_at("unedited", "compare", "--editors", "ft", "--generation-length", 128, *options)
    assert code == 130, seen
    assert seen.rstrip().endswith("interrupted; run the same command again to go on")
    assert "Traceback" not in seen
