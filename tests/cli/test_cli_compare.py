"""`tl-rome compare`: the library's table in files and on the terminal, and clear refusals before long work."""

import json

import pytest
from support.cli import assert_is_picture, fail, misuse, succeed, written
from support.families import KINDS

from tl_rome.editors import KeyCovariance
from tl_rome.errors import InputError

SMALL = ("--editors", "ft,ft_l", "--limit", 2, "--generation-length", 24, "--texts", 1)


@pytest.fixture
def options(folder, tmp_path):
    return (*SMALL, "--model", folder, "--model-class", KINDS[0], "--out", tmp_path / "out")


def test_table_of_the_package_sample_and_the_same_again_from_its_store(options, tmp_path):
    printed = succeed("compare", *options)
    out = tmp_path / "out"
    assert {"compare.json", "compare.md", "compare.png", "report.html"} <= written(out)
    assert_is_picture(out / "compare.png")
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert list(rows) == ["unedited", "ft", "ft_l"]
    assert rows["ft"]["ES"]["n"] == 2
    assert rows["ft"]["GE"]["mean"] > 0
    assert "paired bootstrap" in printed
    assert "ft_l - unedited" in (out / "compare.md").read_text()
    lines = [(path, path.read_text()) for path in (out / "results").rglob("*.jsonl")]
    assert succeed("compare", *options) == printed
    assert [(path, path.read_text()) for path, _ in lines] == lines


def test_free_answers_have_a_table_of_their_own(options, tmp_path):
    printed = succeed("compare", *options, "--free", "--workers", 1)
    assert "ES-free" in printed
    rows = json.loads((tmp_path / "out/compare.json").read_text())["rows"]
    assert rows["ft"]["free"]["n"] == rows["unedited"]["EA-free"]["n"] == 2
    [said] = {json.loads(line)["after"]["free_rewrite"][0]["prompt"] for line in _lines(tmp_path)[1:2]}
    assert said in (tmp_path / "out/report.html").read_text()


def test_a_file_in_zsres_layout_gets_zsres_figures(options, tmp_path):
    row = {"subject": "Big Ben", "src": "Where is Big Ben?", "answers": ["London"], "rephrase": "Where is it?"}
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([{**row, "loc": "nq question: who wrote the iliad", "loc_ans": "Homer"}]))
    printed = succeed("compare", *options, "--records", path)
    assert {"zsre.json", "zsre.md", "results/unedited.jsonl"} <= written(tmp_path / "out")
    assert list(json.loads((tmp_path / "out/zsre.json").read_text())["rows"]) == ["unedited", "ft", "ft_l"]
    assert "specificity" in printed
    lines = [(path, path.read_text()) for path in (tmp_path / "out/results").rglob("*.jsonl")]
    assert succeed("compare", *options, "--records", path) == printed
    assert len(lines) == 3
    assert [(path, path.read_text()) for path, _ in lines] == lines
    said = fail("compare", *options, "--records", path, "--free", "--texts", 2)
    assert "--free, --texts cannot be had with a file in zsRE's layout; leave it out" in said


def _lines(folder):
    return next((folder / "out/results/editors").glob("ft-*.jsonl")).read_text().splitlines()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--records", "no_such_file.json"), "no_such_file.json"),
        (("--references", "no_such_file.json"), "no_such_file.json"),
    ],
)
def test_files_that_do_not_exist_are_named(options, wrong, message):
    assert message in fail("compare", *options, *wrong)


@pytest.mark.slow
def test_model_and_statistics_reach_the_worker_processes(options, statistics, tmp_path):
    limits = ("--limit", 2, "--generation-length", 0, "--workers", 2)
    succeed("compare", *options, *limits, "--editors", "rome", "--covariance", statistics)
    [file] = (tmp_path / "out/results/editors").glob("*.jsonl")
    header, *results = map(json.loads, file.read_text().splitlines())
    covariance = KeyCovariance.load(statistics)
    found = header["settings"]["editor_settings"]["covariance"]
    assert (found["layer"], found["digest"]) == (covariance.layer, covariance.digest)
    assert len(results) == 2


def test_the_layer_is_found_once_for_all_workers(options, monkeypatch):
    """In this process, before they begin; a single worker leaves it to the editors."""

    class Found:
        layer = 2

        def __str__(self):
            return "layer 2, traced"

    makers = []

    def evaluate(load, records, maker, **_):
        makers.append(maker)
        raise InputError("nothing is measured")

    monkeypatch.setattr("tl_rome.patching.find_layer", lambda model, **_: Found())
    monkeypatch.setattr("tl_rome.counterfact.evaluate_in_processes", evaluate)
    for workers, layer in ((2, "2"), (1, "auto")):
        fail("compare", *options, "--editors", "rome,ft", "--layer", "auto", "--workers", workers)
        assert makers[-1].layer == layer


def test_unknown_editors_and_layers_are_refused(options):
    assert "there is no editor 'mendel'; choose from ft" in misuse("compare", *options, "--editors", "ft,mendel")
    assert "'deep' is neither a layer's number nor auto" in misuse("compare", *options, "--layer", "deep")


def test_a_store_of_other_settings_is_refused(options):
    succeed("compare", *options)
    assert "generation_length" in fail("compare", *options, "--generation-length", 30)
