"""`tl-rome table3`: the library's table in files and on the terminal, and clear refusals before long work."""

import json

import pytest
from support.cli import assert_is_picture, fail, succeed, written
from support.families import KINDS

SMALL = ("--editors", "ft,ft_l", "--limit", 2, "--generation-length", 24, "--texts", 1)


@pytest.fixture
def options(folder, tmp_path):
    return (*SMALL, "--model", folder, "--kind", KINDS[0], "--out", tmp_path / "out")


def test_table_on_the_embedded_sample_goes_on_where_it_stopped(options, tmp_path):
    told = succeed("table3", *options)
    out = tmp_path / "out"
    assert {"compare.json", "compare.md", "compare.png", "report.html"} <= written(out)
    assert_is_picture(out / "compare.png")
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert list(rows) == ["unedited", "ft", "ft_l"]
    assert rows["ft"]["ES"]["n"] == 2
    assert rows["ft"]["GE"]["mean"] > 0
    assert "paired bootstrap" in told
    assert "ft_l - unedited" in (out / "compare.md").read_text()
    lines = [(path, path.read_text()) for path in (out / "results").rglob("*.jsonl")]
    assert succeed("table3", *options) == told
    assert [(path, path.read_text()) for path, _ in lines] == lines


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--editors", "ft,kn"), "no editor 'kn'; choose from ft"),
        (("--records", "no_such_file.json"), "no_such_file.json"),
        (("--references", "no_such_file.json"), "no_such_file.json"),
    ],
)
def test_what_cannot_be_run_is_named(options, wrong, told):
    assert told in fail("table3", *options, *wrong)


def test_a_store_of_other_settings_is_refused(options):
    succeed("table3", *options)
    assert "generation_length" in fail("table3", *options, "--generation-length", 30)
