"""`tl-rome localization`: the library's report, as a file, JSON, Markdown and a picture, and clear refusals."""

import pytest
from support.cli import fail, read_experiment, succeed
from support.families import KINDS

from tl_rome.counterfact import LocalizationReport, finetune_over_layers, load_counterfact, localization_report
from tl_rome.editors import FT
from tl_rome.patching import GaussianNoise, TraceConfig

KIND = KINDS[0]


@pytest.fixture
def options(folder, tmp_path):
    return ("--model", folder, "--model-class", KIND, "--out", tmp_path / "out")


def test_the_files_hold_the_report_of_the_library(tiny, options, tmp_path):
    arguments = ("localization", "--editor", "ft", "--layers", 2, "--facts", 4, "--every-fact", "--samples", 2)
    printed = succeed(*arguments, *options)
    data, table = read_experiment(tmp_path / "out", "localization")
    found = LocalizationReport.load(tmp_path / "out" / "localization.safetensors")
    config = TraceConfig(corruption=GaussianNoise(samples=2))
    editors, records = finetune_over_layers([2], FT), load_counterfact()[:4]
    expected = localization_report(tiny("gpt2", KIND), records, editors, config=config, progress=False)
    assert found.to_dict() == expected.to_dict()
    assert data["layer"] == expected.layer
    assert all(grid.markdown in table for grid in expected.grids())
    assert f"to edit: layer {expected.layer} " in printed
    assert succeed(*arguments, *options) == printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "1"), "rome needs key statistics, and there are none of layers 1"),
        (("--editor", "kn"), "kn chooses its layers itself; give ft, ft_l or a preset of rome"),
        (("--editor", "ft", "--layers", "1,9", "--every-fact"), "layer 9 is out of range"),
    ],
    ids=["statistics", "editor", "layer"],
)
def test_what_is_refused(options, arguments, message):
    assert message in fail("localization", *arguments, *options)
