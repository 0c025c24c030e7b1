"""`tl-rome sequential`: the library's figures, as JSON, Markdown and a picture, and clear refusals."""

import pytest
from support.cli import fail, misuse, read_experiment, succeed
from support.families import KINDS

from tl_rome.counterfact import load_counterfact
from tl_rome.counterfact.experiments.sequential import sequential_edits
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.editors import FT_L, FineTune

KIND = KINDS[0]
SHORT = ("--limit", 3)


@pytest.fixture
def options(folder, tmp_path):
    return ("--model", folder, "--model-class", KIND, "--out", tmp_path / "out")


def test_figures_are_the_librarys(tiny, options, tmp_path):
    printed = succeed("sequential", "--editors", "ft_l", "--counts", "1,3", *SHORT, *options)
    data, table = read_experiment(tmp_path / "out", "sequential")
    result = SequentialResult.from_dict(data["ft_l"])
    model = tiny("gpt2", KIND)
    editor = FineTune.prepare(model, config=FT_L)
    expected = sequential_edits(model, load_counterfact()[:3], editor, (1, 3), name="ft_l", progress=False)
    assert result == expected
    assert expected.grid().markdown in table
    assert f"{expected.text_nll[-1]:.2f}" in printed
    assert succeed("sequential", "--editors", "ft_l", "--counts", "1,3", *SHORT, *options) == printed


def test_counts_go_as_far_as_the_records_by_default(options, tmp_path):
    succeed("sequential", "--editors", "ft_l", "--limit", 2, *options)
    assert read_experiment(tmp_path / "out", "sequential")[0]["ft_l"]["curve"]["x"] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--counts", "1,9"), "give numbers from 1 to 3"),
        (("--counts", "0,1"), "give numbers from 1 to 3"),
        (("--records", "nowhere.json"), "cannot read nowhere.json"),
        (("--editors", "ft,ft_l", "--layer", "2"), "ft and ft_l choose their layers themselves here"),
        (("--covariance", "nowhere"), "nowhere does not exist"),
    ],
)
def test_what_is_refused_before_the_model_is_loaded(tmp_path, arguments, message):
    assert message in fail("sequential", *SHORT, *arguments, "--model", "./nowhere", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_invalid_counts_are_refused(options):
    assert "'one' is not a list of numbers" in misuse("sequential", "--counts", "one", *options)
