"""Tables show what the library's own text shows, row by row."""

from dataclasses import replace

import pandas
import torch
from rich.console import Console
from support.edits import REQUEST, editor
from support.families import KINDS

from tl_rome.cli import console
from tl_rome.cli.tables import convergence_table, frame_grid, receipt_table
from tl_rome.editors import RELEASED, Convergence


def shown(table):
    console = Console(width=300)
    with console.capture() as capture:
        console.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_a_receipt_is_shown_whole(tiny):
    model = tiny("gpt2", KINDS[0])
    receipt = replace(editor(model), config=replace(RELEASED, clamp=3.5))(model, REQUEST).receipt
    receipt = replace(receipt, warnings=("one [sign]", "another"))
    lines = shown(receipt_table(receipt))
    assert "preset released with clamp=3.5" in lines
    assert [" ".join(line.split()) for line in str(receipt).splitlines()] == [line for line in lines if line]
    assert [line for line in lines if line.startswith("WARNING")] == ["WARNING one [sign]", "WARNING another"]


def test_texts_in_a_receipt_stay_in_their_line_and_do_not_drive_a_terminal(tiny):
    receipt = editor(tiny("gpt2", KINDS[0]))(tiny("gpt2", KINDS[0]), REQUEST).receipt
    receipt = replace(receipt, target_new="Rome\nverdict  took\x1b[2J", covariance="\x1b]0;x\x07", warnings=("\x9b1m",))
    table = "\n".join(shown(receipt_table(receipt)))
    for text in (str(receipt), table):
        assert not {*"\x1b\x07\x9b"} & {*text}
        for escaped in (r"\x1b[2J", r"\x1b]0;x\x07", r"\x9b1m"):
            assert escaped in text
    assert not [line for line in str(receipt).splitlines() if line.startswith("verdict")]


def test_convergence_is_shown_whole():
    cosine = torch.tensor([[torch.nan, torch.nan], [0.991, 0.992], [1.0, 1.0]])
    report = Convergence((1, 2, 4), cosine, cosine)
    assert report.rows()[:2] == [("1", "C is singular", "", ""), ("2", "0.9910", "0.9915", "0.992")]
    lines = shown(convergence_table(report, 3))
    for line in str(report).splitlines():
        assert " ".join(line.split()) in lines


def test_a_frame_is_cut_between_columns_where_the_terminal_is_narrow(capsys, monkeypatch):
    columns = [f"a long name of column {n}" for n in range(9)]
    frame = pandas.DataFrame([["resid_post", *(n / 16 for n in range(1, 9))]], columns=columns)
    monkeypatch.setattr(console, "out", Console(width=80))
    console.say_grids([frame_grid(frame, "The caption.")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for whole in (*columns, "resid_post", *(f"{n / 16:.3f}" for n in range(1, 9)), "The caption."):
        assert whole in text
