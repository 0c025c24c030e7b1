"""What reaches the terminal: control characters escaped, log lines without their origin."""

import logging

import pytest
from rich.console import Console

from tl_rome.cli import console
from tl_rome.cli.demo_run import Answer
from tl_rome.cli.tables import answer_table
from tl_rome.grid import Grid

HOSTILE = "a\x1b[31mb\x07\x9b2J\rc\x7f \u202ee\u2066f\u2028g\ud83d [red]d[/]"
ESCAPED = r"a\x1b[31mb\x07\x9b2J\rc\x7f \u202ee\u2066f\u2028g\ud83d [red]d[/]"


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=200, force_terminal=True, color_system=None))


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize(
    "show",
    [
        lambda: console.say(HOSTILE),
        lambda: console.complain(HOSTILE),
        lambda: console.say_grids([Grid("caption", ("header", "other"), ((HOSTILE, "1"),))]),
        lambda: console.say_grids([Grid(HOSTILE, ("header", "o" * 60), (("1", "2"),))]),
        lambda: console.out.print(answer_table(["x"], [("prompt", Answer(HOSTILE, (0.1,)), Answer("b", (0.2,)))])),
    ],
)
def test_escape_sequences_are_shown_and_not_obeyed(capsys, show):
    show()
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert ESCAPED in text
    assert "\x1b[31m" not in text
    assert not {*"\x07\x9b\r\x7f\u202e\u2066\u2028\ud83d"} & {*text}


def test_lines_and_other_alphabets_stay_as_they_are():
    text = "two\n\tlines, 東京, Élysée, no\xa0break"
    assert console.visible(text).plain == text


def test_log_lines_have_a_level_and_no_origin(capsys):
    log = logging.getLogger("tl_rome")
    before = log.handlers, log.propagate
    try:
        console.log_plainly()
        console.log_plainly()  # once more changes nothing
        logging.getLogger("tl_rome.somewhere").warning("%d of %s", 2, HOSTILE)
    finally:
        log.handlers, log.propagate = before
    assert capsys.readouterr().err == f"warning: 2 of {ESCAPED}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    assert console.shows_progress() == terminal
