"""The README's Python blocks run as pasted, one after the other, and print what it says that they print."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def python_blocks(text: str) -> list[str]:
    """The code of each fenced Python block, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def stated(block: str) -> list[str]:
    """What comments of a block say that it prints."""
    return re.findall(r"# prints (.+)$", block, flags=re.MULTILINE)


def test_blocks_and_what_they_print_are_found():
    text = "a\n```python\nx\n  # prints [1]\n```\n```console\ny\n```\n```python\nz\n```\n"
    blocks = python_blocks(text)
    assert blocks == ["x\n  # prints [1]\n", "z\n"]
    assert [stated(block) for block in blocks] == [["[1]"], []]


@pytest.mark.slow
@pytest.mark.leg("3.9")
def test_blocks_run_as_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks, names = python_blocks(README.read_text(encoding="utf-8")), dict[str, Any]()
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
        printed = capsys.readouterr().out
        for text in stated(block):
            assert text in printed
    assert sum(len(stated(block)) for block in blocks) == 1
    (size,) = re.findall(r"edit\.save\(.+# (\d+) kB", blocks[0])
    assert round((tmp_path / "eiffel.safetensors").stat().st_size / 1000) == int(size)
    assert {"compare.json", "report.html"} <= {path.name for path in (tmp_path / "runs/first").iterdir()}
