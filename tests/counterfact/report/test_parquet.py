"""A table of results has their figures and their raw scores, and survives Parquet."""

import math

import pandas
import pytest
from support.results import case, measurement, scores

from tl_rome.counterfact import summarize, to_dataset, write_parquet
from tl_rome.counterfact.results import Divergence, Generation
from tl_rome.errors import StorageError

BEFORE = measurement(False, [False], [True, True])
AFTER = measurement(
    True,
    [True, False],
    [True, False],
    neighborhood_plus=scores((1.0, 2.0)),
    generations=(Generation("It is", " in Glasgow, in Scotland."),),
)
RESULTS = [
    case(1, AFTER, BEFORE, divergence=Divergence((0.1, 0.3)), seconds=2.5),
    case(1, BEFORE, BEFORE, editor="none"),
    case(2, None, None, error="too long"),
]


def test_figures_are_those_of_the_summary_and_raw_scores_are_beside_them():
    table = to_dataset(RESULTS).to_pandas()
    assert isinstance(table, pandas.DataFrame)
    row, summary = table.iloc[0], summarize(RESULTS)
    for name, edited in summary.rows["rome"].items():
        if name != "S":
            unedited = summary.rows["unedited"][name]
            assert row[name] == edited.mean or (math.isnan(row[name]) and edited.n == 0)
            assert row[f"unedited {name}"] == unedited.mean or unedited.n == 0
    assert (row["ES"], row["unedited ES"], row["PS"], row["KL"]) == (100, 0, 50, pytest.approx(0.2))
    assert (row["target_new"], row["relation_id"], row["seconds"]) == ("Glasgow", "P159", 2.5)
    assert row["after"]["paraphrase"]["logprob_new"].tolist() == list(AFTER.paraphrase.logprob_new)
    assert row["after"]["generations"][0]["continuation"] == AFTER.generations[0].continuation


def test_what_was_not_measured_is_null():
    rows = to_dataset(RESULTS).to_list()
    assert rows[1]["GE"] is rows[1]["after"]["neighborhood_plus"] is rows[0]["unedited NS+"] is None
    assert rows[2]["ES"] is rows[2]["unedited ES"] is rows[2]["after"] is None
    assert rows[2]["error"] == "too long"


def test_parquet_holds_the_same_table(tmp_path):
    from datasets import Dataset

    path = write_parquet(RESULTS, tmp_path / "new" / "results.parquet", conventions="draft")
    assert (
        Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).to_list()
        == to_dataset(RESULTS, conventions="draft").to_list()
    )
    assert to_dataset(RESULTS, conventions="draft")[0]["GE"] == pytest.approx(to_dataset(RESULTS)[0]["GE"] / 100)


def test_tables_of_different_runs_have_one_schema():
    assert to_dataset(RESULTS[:1]).features == to_dataset(RESULTS[2:]).features == to_dataset([]).features
    assert len(to_dataset([])) == 0


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_parquet(RESULTS, tmp_path / "file" / "results.parquet")
