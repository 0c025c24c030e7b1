"""The README's Python block runs as pasted, and prints what it says that it prints."""

import re
from typing import Any

import pytest
from support.pages import REPOSITORY, python_blocks

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_command_is_named():
    from tl_rome.cli import app

    names = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    assert {name for name in names if f"`tl-rome {name}`" not in README} == set()


@pytest.mark.slow
@pytest.mark.leg("3.9")
def test_block_runs_as_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(README)
    exec(compile(block.code, "README.md", "exec"), dict[str, Any]())
    (stated,) = block.stated
    assert stated in capsys.readouterr().out
    (size,) = re.findall(r"edit\.save\(.+# (\d+) kB", block.code)
    assert round((tmp_path / "eiffel.safetensors").stat().st_size / 1000) == int(size)
