import json

import pytest
from support.evaluation import RECORDS, SHORT, RandomEdit
from support.families import KINDS

from tl_rome.counterfact import load_references, summarize, table3
from tl_rome.errors import TLRomeError

EDITORS = {"weak": RandomEdit(), "strong": RandomEdit(strength=50.0, refused=("Big Ben",))}


@pytest.fixture
def table(tiny):
    return table3(tiny("llama", KINDS[0]), RECORDS, EDITORS, references=load_references(), config=SHORT, progress=False)


def test_table_is_the_summary_of_what_was_evaluated(table):
    expected = summarize(table.results, references=load_references())
    assert table.summary.grid(table.columns) == expected.grid(table.columns)
    assert list(table.summary.rows) == ["unedited", "weak", "strong"]
    assert [len(table.summary.figures[name]) for name in table.summary.rows] == [5, 5, 4]
    assert table.columns[:8] == ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE")
    assert {"NS+", "KL", "KL+", "drift", "EA"} <= set(table.columns)
    assert "PPL" not in table.columns, "nothing of it was measured"


def test_saved_files_say_the_same(table, tmp_path):
    files = table.save(tmp_path / "new")
    assert {file.name for file in files} == {"table3.json", "table3.md", "table3.png", "report.html"}
    assert all(file.stat().st_size > 500 for file in files)
    read = json.loads((tmp_path / "new" / "table3.json").read_text())
    row = table.summary.rows["weak"]
    assert read["rows"]["weak"]["EM"] == {"n": 5, "mean": row["EM"].mean, "low": row["EM"].low, "high": row["EM"].high}
    assert read["differences"]["strong"]["ES"]["n"] == 4
    assert list(read["failures"]["strong"]) == ["1"]
    assert (tmp_path / "new" / "table3.md").read_text() == table.markdown
    assert row["EM"].text() in table.markdown
    assert "weak - unedited" in table.markdown


def test_a_folder_that_cannot_be_written_is_named(table, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TLRomeError, match="file"):
        table.save(tmp_path / "file")
