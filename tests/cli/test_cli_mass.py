"""`tl-rome mass`: the library's figures, as JSON, Markdown and a picture, and clear refusals."""

import inspect

import pytest
from support.cli import fail, read_experiment, succeed
from support.families import KINDS, SENTENCES

from tl_rome.cli import many_facts
from tl_rome.counterfact import SequentialResult, load_counterfact, mass_edits, sequential_edits
from tl_rome.editors import MassEditor
from tl_rome.editors.covariance.estimation import estimate_covariances

KIND = KINDS[0]


@pytest.fixture
def options(folder, tmp_path):
    return ("--model", folder, "--model-class", KIND, "--limit", 3, "--out", tmp_path / "out")


def test_figures_are_the_librarys(tiny, options, tmp_path, monkeypatch):
    def statistics(model, layers, **_):
        return estimate_covariances(model, layers, SENTENCES, source="sentences", progress=False)

    monkeypatch.setattr("tl_rome.editors.by_name.covariances_for", statistics)
    monkeypatch.setattr("tl_rome.editors.mass.editor.covariances_for", statistics)
    command = ("mass", "--editors", "emmet", "--counts", "1,2", "--max-nll-rise", 9, *options)
    printed = succeed(*command)
    data, table = read_experiment(tmp_path / "out", "mass")
    model = tiny("gpt2", KIND)
    editor, more = MassEditor.prepare(model, config="emmet"), {"max_nll_rise": 9.0, "name": "emmet", "progress": False}
    expected = mass_edits(model, load_counterfact()[:2], editor, (1, 2), **more)
    assert SequentialResult.from_dict(data["emmet"]) == expected
    assert expected.grid().markdown in table
    assert f"{expected.text_nll[-1]:.2f}" in printed
    assert succeed(*command) == printed, "from the store"


def test_batches_of_sequential_edits(options, tmp_path):
    succeed("sequential", "--editors", "ft_l", "--batch", 2, *options)
    [result] = map(SequentialResult.from_dict, read_experiment(tmp_path / "out", "sequential")[0].values())
    assert result.curve.x == (2,)
    assert result.first is not None
    assert "--batch with 3 records" in fail("sequential", "--editors", "ft_l", "--batch", 4, *options)


def test_the_bound_is_the_librarys():
    for experiment in (mass_edits, sequential_edits):
        assert inspect.signature(experiment).parameters["max_nll_rise"].default == many_facts.MAX_NLL_RISE


def test_counts_beyond_the_records_are_refused_before_the_model_is_loaded(tmp_path):
    out = ("--model", "./nowhere", "--out", tmp_path / "out")
    assert "give numbers from 1 to 3" in fail("mass", "--counts", "1,9", "--limit", 3, *out)
    assert not (tmp_path / "out").exists()
