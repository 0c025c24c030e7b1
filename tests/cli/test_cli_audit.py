"""`tl-rome diff` and `tl-rome audit`: tables on the screen, files, exit codes, and a model put right."""

import json

import pytest
import torch
from support.cli import fail, succeed, written
from support.families import KINDS

from tl_rome import KeyCovariance, Rome, load_model
from tl_rome.cli.demo_run import FACT, NEW
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import w_out

KIND = KINDS[0]
CLASS = ("--model-class", KIND)


@pytest.fixture(scope="module")
def edit(tiny, statistics, tmp_path_factory):
    """File of an edit of layer 1."""
    made = Rome(KeyCovariance.load(statistics), ("",))(
        tiny("gpt2", KIND), EditRequest(FACT.template, FACT.subject, NEW)
    )
    return made.save(tmp_path_factory.mktemp("edits") / "edit.safetensors")


@pytest.fixture(scope="module")
def edited(folder, edit, tmp_path_factory):
    """Folder of the edited model."""
    out = tmp_path_factory.mktemp("models") / "edited"
    succeed("export", edit, "--model", folder, "--out", out)
    return out


def test_diff_of_two_models_and_of_one_with_an_edit_are_the_same(folder, edit, edited, tmp_path):
    asked = ("--prompt", FACT.prompt, "--subject", "Nobody", "--new-tokens", 2, "--top-k", 3, *CLASS)
    printed = succeed("diff", folder, edited, *asked, "--out", tmp_path / "two")
    succeed("diff", folder, "--edit", edit, *asked, "--out", tmp_path / "one")
    assert written(tmp_path) == {f"{name}/diff.{suffix}" for name in ("one", "two") for suffix in ("json", "md")}
    one, two = (json.loads((tmp_path / name / "diff.json").read_text()) for name in ("one", "two"))
    assert (one["edited"], two["edited"], one["edits"]) == (str(folder), str(edited), [str(edit)])
    for name in ("changes", "findings", "answers", "unchanged"):
        assert one[name] == two[name]
    (change,) = one["changes"]
    assert (change["name"], change["kind"]) == ("W_out of layer 1", "rank 1")
    assert one["answers"][0]["after"]["tokens"] != one["answers"][0]["before"]["tokens"]
    page = (tmp_path / "two/diff.md").read_text()
    for text in ("W_out of layer 1", FACT.prompt):
        assert text in page
        assert text in printed


def test_audit_finds_the_edit_and_writes_the_model_without_it(folder, edited, tmp_path, fresh_tiny):
    repaired = ("--repaired", tmp_path / "right")
    options = ("--prompt", FACT.prompt, "--base", folder, *CLASS, "--out", tmp_path / "out")
    printed = succeed("audit", edited, *options, *repaired, codes=(3,))
    assert "1 low-rank changes of W_out, 0 other weights differ" in printed
    found = json.loads((tmp_path / "out/audit.json").read_text())
    assert [finding["place"] for finding in found["findings"]] == ["W_out of layer 1"]
    base, again = fresh_tiny("gpt2", KIND), load_model(str(tmp_path / "right"), model_class=KIND, progress=False)
    assert torch.equal(w_out(base, 1), w_out(again, 1))
    assert "equal to the base" in succeed("audit", tmp_path / "right", *options)
    assert "needs no repair" in fail("audit", folder, *options, "--repaired", tmp_path / "none")


def test_audit_without_a_base_says_how_little_that_means(folder, tmp_path):
    printed = succeed("audit", folder, *CLASS, "--out", tmp_path)
    assert "nothing stands out, which a weak or spread edit would not either" in printed
    assert json.loads((tmp_path / "audit.json").read_text())["threshold"] >= 1.4


def test_what_is_refused_leaves_nothing(folder, family_dir, edit, tmp_path):
    out = ("--out", tmp_path / "out", *CLASS)
    assert "name a second model, or give --edit FILE" in fail("diff", folder, *out)
    assert "cannot be compared weight by weight" in fail("diff", folder, family_dir("gptj"), *out)
    assert "belongs to the model" in fail("diff", family_dir("gptj"), "--edit", edit, *out)
    assert "is not empty" in fail("audit", folder, "--repaired", folder, *out)
    assert not list(tmp_path.iterdir())
