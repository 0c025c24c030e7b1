"""Command lines with a few options missing, doubled, or of values that make no sense.

Each ends with an exit code of the documented ones, without a traceback; one that is refused leaves no file.
"""

import os
import time
import zlib
from enum import Enum
from pathlib import Path

import pytest
import typer
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from support.attacked import Attacked
from support.cli import run, written
from support.families import KINDS, SENTENCES
from support.interrupts import time_limit

from tl_rome.cli import app
from tl_rome.cli.demo_run import FACT, NEW
from tl_rome.patching import save_facts

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FT = ("--editors", "ft", "--limit", "1")
REWRITE = ("--template", FACT.template, "--subject", FACT.subject, "--target-new", NEW)
WORK = {
    "demo": (),
    "trace": (FACT.template, FACT.subject, "--samples", "1", "--component", "mlp_out"),
    "trace-many": ("--facts", "facts.jsonl", "--prompts", "2", "--samples", "1"),
    "edit": (FACT.template, FACT.subject, NEW, "--editor", "ft"),
    "covariance": ("--layer", "1", "--text", "text.txt"),
    "train": ("mend-cf", "--examples", "6", "--steps", "1", "--rank", "2"),
    "export": ("edit.safetensors",),
    "compare": (*FT, "--generation-length", "0"),
    "sweep": (*FT, "--layers", "1"),
    "localization": ("--editor", "ft", "--layers", "1", "--facts", "4", "--every-fact", "--samples", "1"),
    "sequential": (*FT, "--counts", "1"),
    "generate": (*REWRITE, "--editors", "ft", "--new-tokens", "2"),
}
"""Quick work for each command, in a folder with the files that are named."""
KEPT = ("known.jsonl", "known.jsonl.lock")
"""What the model knows is kept for the next call, also if that is too little for this one."""
SLOW = {"demo": 30}
"""Attempts at what takes seconds."""
NUMBERS = ("-1", "0", "1", "2", "3", "1.5", "1e3", "0x1", "nan", "inf", "", " ", "1,2", "2,2", "1,,2", "x", "1-3", "٣")
HUGE = ("9" * 30, "-" + "9" * 20, str(2**63), str(2**64))
"""For what costs nothing with size."""
CHEAP = ("--seed", "--layer", "--layers", "--record", "--counts", "--window")
WORDS = (
    *("", " ", "ft", "rome", "ft,ft", "cpu", "cuda:99", "meta", "float16", "bfloat16", "hooked", "bridge", "released"),
    *("mlp_out", "attn.hook_z", "hook_embed", "{}", "In {} is", "Rome", "\x1b[2J", "a\x00b", "日本🗼", "--out"),
    *("Paris" * 200, "x" * 300, "edit.safetensors", "facts.jsonl", "text.txt", "no/such/file", "folder", "sample"),
    *("~nosuchuser/x", "hf://", "hf://a/b/c", "auto", "'", "\n", "-", "--"),
)


@pytest.fixture(scope="module")
def inputs(family_dir, tmp_path_factory):
    """A folder with the files that the commands read, and the model's."""
    folder = tmp_path_factory.mktemp("inputs")
    attacked = Attacked(family_dir("gpt2"), KINDS[0])
    save_facts(folder / "facts.jsonl", [FACT])
    attacked.edit.save(folder / "edit.safetensors")
    (folder / "text.txt").write_text("\n".join(SENTENCES), "utf-8")
    (folder / "folder").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        patch.chdir(folder)
        yield family_dir("gpt2"), folder, written(folder)


def values(option, name):
    """Values of an option, more of its own type than of others."""
    kind = getattr(getattr(option, "type_descriptor", None), "annotation", str)
    numbers = st.sampled_from(NUMBERS + HUGE if name in CHEAP else NUMBERS)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from([*(each.value for each in kind), "bogus"])
    if kind is int:
        return st.sampled_from(("1", "2", "3")) | numbers
    return st.sampled_from(WORDS) | numbers | st.text(max_size=6)


@st.composite
def odd_options(draw, command):
    """Options of the command, a few of them, and perhaps one that no command has."""
    known = [parameter for parameter in COMMANDS[command].params if parameter.param_type_name == "option"]
    found = []
    for option in draw(st.lists(st.sampled_from(known), min_size=1, max_size=2)):
        name = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
        found += [name] if getattr(option, "is_flag", False) else [name, draw(values(option, name))]
    return found + draw(st.sampled_from([[]] * 20 + [["--bogus"], ["more"], ["--out"]]))


@pytest.mark.parametrize("command", WORK)
def test_odd_command_lines(inputs, outcomes, effort, command):
    model, folder, before = inputs

    @seed(zlib.crc32(command.encode()) + effort(0, time.time_ns()))
    @settings(max_examples=effort(1 if command in SLOW else 2, SLOW.get(command, 110)))
    @given(odd=odd_options(command), missing=st.integers(0, 20))
    def attempt(odd, missing):
        work = [*WORK[command][missing == 1 :], "--model", str(model), "--out", "out", *odd]
        if missing == 1 or "--model" not in odd:
            work += ["--model", str(model)]  # never the embedded one, whose runs take minutes
        shown = " ".join([command, *map(repr, work)])
        try:
            with time_limit():
                result = run(command, *work)
        except Exception as error:
            outcomes.fault(f"traceback of {type(error).__name__}", f"{shown}: {error!r:.200}")
        else:
            outcomes[f"exit code {result.exit_code}"] += 1
            allowed = (0, 1, 2, 130, *((3,) if command in ("edit", "demo", "train") else ()))
            if result.exit_code not in allowed:
                outcomes.fault(f"exit code {result.exit_code}", shown)
            if "Traceback" in result.output:
                outcomes.fault("traceback in the output", shown)
            left = {path for path in written(folder) - before if Path(path).name not in KEPT}
            if result.exit_code in (1, 2) and left:
                outcomes.fault("files of a refused call", f"{shown}: {sorted(left)[:4]}; {result.output[-200:]}")
        clear(folder, before)

    attempt()
    outcomes.check()


def clear(folder, before):
    """Delete what a call has written."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if name != "folder" and not os.listdir(path):
                path.rmdir()
        elif name not in before:
            path.unlink()
