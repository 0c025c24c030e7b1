"""Tables of foreign names and texts: shown as they are, in a terminal and in Markdown, and obeyed in neither."""

from itertools import pairwise

import pytest
from rich.console import Console

from tl_rome.grid import Grid, in_markdown

HOSTILE = "a|b\n| c `d` <img src=x> [e](javascript:f) \\| \x1b]0;title\x07 \u202egnp"
SHOWN = r"a|b | c `d` <img src=x> [e](javascript:f) \| \x1b]0;title\x07 \u202egnp"


def plain(markdown):
    """What a reader of Markdown sees, if nothing in it is markup."""
    return "".join(part[1:] if part.startswith("\\") else part for part in split(markdown))


def split(markdown):
    """Escaped characters and all others."""
    place = 0
    while place < len(markdown):
        length = 2 if markdown[place] == "\\" else 1
        yield markdown[place : place + length]
        place += length


@pytest.mark.parametrize("prose", [False, True])
def test_markdown_of_a_hostile_text_shows_it(prose):
    written = in_markdown(HOSTILE, prose=prose)
    assert plain(written) == SHOWN
    parts = [*split(written)]
    assert not {"|", "`", "<"} & {*parts}
    assert ("]", "(") not in {*pairwise(parts)}
    assert written.isprintable()


@pytest.mark.parametrize("prose", [False, True])
def test_a_table_keeps_its_rows_and_columns_whatever_its_cells_say(prose):
    markdown = Grid(HOSTILE, ("name", HOSTILE), ((HOSTILE, "1"), ("x", HOSTILE)), prose=prose).markdown
    rows = markdown.splitlines()
    assert [[*split(row)].count("|") for row in rows[:4]] == [3, 3, 3, 3]
    assert (rows[4], len(rows)) == ("", 6)
    assert plain(rows[5]) == SHOWN


def test_names_and_intervals_stay_readable():
    assert in_markdown("ft_l, epsilon 0.0005: 50.0 [40.0, 60.0] (draft) #1") == (
        "ft_l, epsilon 0.0005: 50.0 [40.0, 60.0] (draft) #1"
    )


def test_a_terminal_is_not_driven():
    console = Console(width=400, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Grid(HOSTILE, (HOSTILE, "n"), ((HOSTILE, "1"),)).table)
    shown = capture.get()
    assert not {"\x07", "\u202e"} & {*shown}
    assert "\x1b]" not in shown
    assert shown.count(r"\x1b]0;title\x07") == 3
