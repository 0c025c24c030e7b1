"""A comparison's files say what its summary says."""

import json

import pytest
from PIL import Image
from support.evaluation import RECORDS, SHORT, RandomEdit
from support.families import KINDS

from tl_rome.counterfact import evaluate, load_references, summarize
from tl_rome.errors import TLRomeError

EDITORS = {"weak": RandomEdit(), "strong": RandomEdit(strength=50.0, refused=("Big Ben",))}


@pytest.fixture
def results(tiny):
    return evaluate(tiny("llama", KINDS[0]), RECORDS, EDITORS, config=SHORT, progress=False)


@pytest.fixture
def summary(results):
    return summarize(results, references=load_references())


def test_columns_are_those_of_the_source_and_what_else_was_measured(summary):
    assert list(summary.rows) == ["unedited", "weak", "strong"]
    assert [len(summary.figures[name]) for name in summary.rows] == [5, 5, 4]
    assert summary.columns[:8] == ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE")
    assert {"NS+", "KL", "KL+", "drift", "EA"} <= set(summary.columns)
    assert "PPL" not in summary.columns, "nothing of it was measured"


def test_saved_files_say_the_same(summary, results, tmp_path):
    files = summary.save(tmp_path / "new", results, RECORDS)
    assert [file.name for file in files] == ["compare.json", "compare.md", "compare.png", "report.html"]
    read = json.loads(files[0].read_text())
    row = summary.rows["weak"]
    assert read["conventions"] == "released"
    assert read["records"] == len(RECORDS)
    assert read["rows"]["weak"]["EM"] == {"n": 5, "mean": row["EM"].mean, "low": row["EM"].low, "high": row["EM"].high}
    assert read["rows"]["weak"]["PPL"] == {"n": 0, "mean": None, "low": None, "high": None}
    assert read["differences"]["strong"]["ES"]["n"] == 4
    assert list(read["failures"]["strong"]) == ["1"]
    assert files[1].read_text() == summary.markdown
    assert row["EM"].text() in summary.markdown
    assert "weak - unedited" in summary.markdown
    assert "- `S`: harmonic mean of ES, PS and NS\n- `ES`: o* more likely than" in summary.markdown
    assert "- `PPL`" not in summary.markdown
    with Image.open(files[2]) as picture:
        assert picture.width > 500
    page = files[3].read_text()
    assert "<h1>Comparison of editors</h1>" in page
    assert RECORDS[0].paraphrase_prompts[0] in page


def test_the_unedited_model_alone_has_no_differences(tiny):
    alone = summarize(evaluate(tiny("llama", KINDS[0]), RECORDS, config=SHORT, progress=False))
    assert alone.to_dict()["differences"] == {}
    assert "unedited - " not in alone.markdown


def test_a_folder_that_cannot_be_written_is_named(summary, results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TLRomeError, match="file"):
        summary.save(tmp_path / "file", results)
