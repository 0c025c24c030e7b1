"""`tl-rome sweep`: the library's figures, as JSON, Markdown and pictures, and clear refusals."""

import pytest
from support.cli import fail, misuse, read_experiment, succeed
from support.families import KINDS, SENTENCES

from tl_rome.counterfact import load_counterfact
from tl_rome.counterfact.experiments.curve import Curve
from tl_rome.counterfact.experiments.sweep import finetune_over_layers, sweep_editors
from tl_rome.editors import FT_L, estimate_covariances

KIND = KINDS[0]
SHORT = ("--limit", 3)


@pytest.fixture
def options(folder, tmp_path):
    return ("--model", folder, "--model-class", KIND, "--out", tmp_path / "out")


def test_sweep_of_fine_tuning_over_layers_and_bounds(tiny, options, tmp_path):
    printed = succeed("sweep", "--layers", "2,0", "--epsilons", "0.0005,0.01", *SHORT, *options)
    data, table = read_experiment(tmp_path / "out", "sweep")
    curves = [Curve.from_dict(each) for each in data]
    assert [curve.name for curve in curves] == ["ft", "ft_l, epsilon 0.0005", "ft_l, epsilon 0.01"]
    editors, records = finetune_over_layers([0, 2], FT_L), load_counterfact()[:3]
    expected = sweep_editors(tiny("gpt2", KIND), records, editors, name="ft_l, epsilon 0.0005", progress=False)
    assert curves[1] == expected
    assert expected.grid().markdown in table
    assert expected.rows[0]["ES"].text() in printed
    assert succeed("sweep", "--layers", "2,0", "--epsilons", "0.0005,0.01", *SHORT, *options) == printed


def test_sweep_over_epsilon_at_one_layer(options, tmp_path):
    succeed("sweep", "--editors", "ft_l", "--layers", 1, "--epsilons", "0.1,0.001", *SHORT, *options)
    [curve] = read_experiment(tmp_path / "out", "sweep")[0]
    assert (curve["along"], curve["x"]) == ("epsilon", [0.001, 0.1])


def test_sweep_of_rome_over_the_layers_of_a_folder(tiny, options, tmp_path):
    statistics = tmp_path / "statistics"
    statistics.mkdir()
    for each in estimate_covariances(tiny("gpt2", KIND), [1, 2], SENTENCES, source="s", progress=False).values():
        each.save(statistics)
    arguments = ("sweep", "--editors", "rome", "--covariances", statistics, "--limit", 1, *options)
    succeed(*arguments)
    [curve] = read_experiment(tmp_path / "out", "sweep")[0]
    assert curve["x"] == [1, 2]
    assert "none of layers 3" in fail(*arguments, "--layers", "1,3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep", "--editors", "rome"), "make them with `tl-rome covariance --layers`"),
        (("sweep", "--layers", "1,9"), "layer 9 is out of range"),
        (("sweep", "--epsilons", "0"), "epsilon is 0.0; give a number above 0"),
    ],
)
def test_what_is_refused(options, tmp_path, arguments, message):
    assert message in fail(*arguments, *SHORT, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "1;2"), "'1;2' is not a list of numbers"),
        (("--epsilons", "small"), "'small' is not a list of numbers"),
        (("--editors", "rom"), "there is no editor 'rom'; choose from ft"),
        (("--editors", ","), "',' names no editor"),
    ],
)
def test_invalid_lists_are_refused(options, arguments, message):
    assert message in misuse("sweep", *arguments, *options)


def test_missing_statistics_are_reported_before_the_model_is_loaded(tmp_path):
    assert "none of any layer" in fail("sweep", "--editors", "rome", "--model", "./nowhere")
    assert "no key statistics in" in fail("sweep", "--covariances", tmp_path, "--model", "./nowhere")
