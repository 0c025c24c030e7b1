"""`tl-rome sweep` and `tl-rome multi`: the library's figures, as JSON, Markdown and pictures, and clear refusals."""

import json

import pytest
from support.cli import assert_is_picture, fail, run, succeed, written
from support.families import KINDS, SENTENCES

from tl_rome.counterfact import load_counterfact
from tl_rome.counterfact.experiments.curve import Curve
from tl_rome.counterfact.experiments.sequential import sequential_edits
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.counterfact.experiments.sweep import finetune_over_layers, sweep_editors
from tl_rome.editors import FT_L, FineTune, estimate_covariances

KIND = KINDS[0]
SHORT = ("--limit", 3)


@pytest.fixture
def options(folder, tmp_path):
    return ("--model", folder, "--kind", KIND, "--out", tmp_path / "out")


def read(out, name):
    assert {f"{name}.{kind}" for kind in ("json", "md", "png")} <= written(out)
    assert_is_picture(out / f"{name}.png")
    return json.loads((out / f"{name}.json").read_text()), (out / f"{name}.md").read_text()


def test_sweep_of_fine_tuning_over_layers_and_bounds(tiny, options, tmp_path):
    told = succeed("sweep", "--layers", "2,0", "--epsilons", "0.0005,0.01", *SHORT, *options)
    data, table = read(tmp_path / "out", "sweep")
    curves = [Curve.from_dict(each) for each in data]
    assert [curve.name for curve in curves] == ["ft", "ft_l, epsilon 0.0005", "ft_l, epsilon 0.01"]
    editors, records = finetune_over_layers([0, 2], FT_L), load_counterfact()[:3]
    expected = sweep_editors(tiny("gpt2", KIND), records, editors, name="ft_l, epsilon 0.0005", progress=False)
    assert curves[1] == expected
    assert expected.grid().markdown in table
    assert expected.rows[0]["ES"].text() in told
    assert succeed("sweep", "--layers", "2,0", "--epsilons", "0.0005,0.01", *SHORT, *options) == told


def test_sweep_over_epsilon_at_one_layer(options, tmp_path):
    succeed("sweep", "--editors", "ft_l", "--layers", 1, "--epsilons", "0.1,0.001", *SHORT, *options)
    [curve] = read(tmp_path / "out", "sweep")[0]
    assert (curve["along"], curve["x"]) == ("epsilon", [0.001, 0.1])


def test_sweep_of_rome_over_the_layers_of_a_folder(tiny, options, tmp_path):
    statistics = tmp_path / "statistics"
    statistics.mkdir()
    for each in estimate_covariances(tiny("gpt2", KIND), [1, 2], SENTENCES, source="s", progress=False).values():
        each.save(statistics)
    arguments = ("sweep", "--editors", "rome", "--covariances", statistics, "--limit", 1, *options)
    succeed(*arguments)
    [curve] = read(tmp_path / "out", "sweep")[0]
    assert curve["x"] == [1, 2]
    assert "none of layers 3" in fail(*arguments, "--layers", "1,3")


def test_many_facts(tiny, options, tmp_path):
    told = succeed("multi", "--editors", "ft_l", "--counts", "1,3", *SHORT, *options)
    data, table = read(tmp_path / "out", "multi")
    result = SequentialResult.from_dict(data["ft_l"])
    model = tiny("gpt2", KIND)
    editor = FineTune.prepare(model, FT_L)
    expected = sequential_edits(model, load_counterfact()[:3], editor, (1, 3), name="ft_l", progress=False)
    assert result == expected
    assert expected.grid().markdown in table
    assert f"{expected.text_nll[-1]:.2f}" in told
    assert succeed("multi", "--editors", "ft_l", "--counts", "1,3", *SHORT, *options) == told


def test_counts_go_as_far_as_the_records_by_default(options, tmp_path):
    succeed("multi", "--editors", "ft_l", "--limit", 2, *options)
    assert read(tmp_path / "out", "multi")[0]["ft_l"]["curve"]["x"] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("multi", "--counts", "1,9"), "give numbers from 1 to 3"),
        (("multi", "--counts", "0,1"), "give numbers from 1 to 3"),
        (("multi", "--editors", "rom"), "there is no editor 'rom'"),
        (("multi", "--editors", ","), "names no editor"),
        (("multi", "--records", "nowhere.json"), "cannot read nowhere.json"),
        (("sweep", "--editors", "rom"), "there is no editor 'rom'"),
        (("sweep", "--editors", "rome"), "make them with `tl-rome covariance --layers`"),
        (("sweep", "--layers", "1,9"), "layer 9 is out of range"),
        (("sweep", "--epsilons", "0"), "must be positive"),
    ],
)
def test_what_is_refused(options, tmp_path, arguments, message):
    assert message in fail(*arguments, *SHORT, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("multi", "--counts", "one"), ("sweep", "--layers", "1;2")])
def test_lists_that_are_none(options, arguments):
    result = run(*arguments, *options)
    assert result.exit_code == 2
    assert "is no list of numbers" in result.stderr


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("mine")
    for command in ("sweep", "multi"):
        assert "is not a folder" in fail(command, "--model", "./nowhere", "--out", tmp_path / "file")
