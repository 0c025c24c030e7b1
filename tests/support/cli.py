"""Calling the command line as its tests do, and looking at what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from tl_rome.cli import app, console


def run(*arguments: Any) -> Result:
    """Call the command line in this process; any exception but an exit is raised."""
    console.out.width, console.out.height = 200, 50  # wide enough that no cell of a table is broken, on any terminal
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def succeed(*arguments: Any, codes: tuple[int, ...] = (0,)) -> str:
    """What a call prints, with runs of white space as one space; it draws no bars, since this is not a terminal."""
    result = run(*arguments)
    assert result.exit_code in codes, result.output
    assert "%|" not in result.stderr
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


def misuse(*arguments: Any) -> str:
    """The message of a call that must fail as a usage error, without its frame and line breaks."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.replace("│", " ").split())


def read_experiment(folder: Path, name: str) -> tuple[Any, str]:
    """The JSON and the Markdown of an experiment's files; the picture is there too."""
    assert {f"{name}.{suffix}" for suffix in ("json", "md", "png")} <= written(folder)
    assert_is_picture(folder / f"{name}.png")
    return json.loads((folder / f"{name}.json").read_text()), (folder / f"{name}.md").read_text()


def written(folder: Path) -> set[str]:
    """Names of all files below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_is_picture(path: Path, wider_than: int = 300) -> None:
    """Check that something is drawn there, in colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(float)
    assert pixels.shape[1] > wider_than
    assert pixels.std() > 10, "nothing is drawn"
    assert np.ptp(pixels, axis=2).max() > 50, "no colour"
