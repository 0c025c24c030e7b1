"""`tl-rome export`: a folder with the edits in it, whole or not at all."""

import json

import pytest
import torch
from support.cli import fail, succeed, written
from support.families import KINDS

from tl_rome import Edit, KeyCovariance, Rome, compose, load_model
from tl_rome.cli.demo_run import FACT, NEW
from tl_rome.facts import EditRequest

KIND = KINDS[0]
TOKENS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def edits(tiny, statistics, tmp_path_factory):
    """Files of two edits of one layer."""
    model, place = tiny("gpt2", KIND), tmp_path_factory.mktemp("edits")
    editor = Rome(KeyCovariance.load(statistics), ("",))
    requests = [EditRequest(FACT.template, FACT.subject, NEW), EditRequest("{} is a", "Big Ben", "bridge")]
    return [editor(model, request).save(place / request.target_new) for request in requests]


@pytest.mark.parametrize("count", [1, 2])
def test_the_folder_reloads_with_the_logits_of_the_edited_model(folder, fresh_tiny, edits, tmp_path, count):
    out = tmp_path / "deep" / "er"
    printed = succeed("export", *edits[:count], "--model", folder, "--out", out)
    model = fresh_tiny("gpt2", KIND)
    before = model(TOKENS)
    with compose(Edit.load(path) for path in edits[:count]).applied(model):
        expected = model(TOKENS)
    assert not torch.allclose(before, expected)
    again = load_model(str(out), model_class=KIND, device="cpu", progress=False)
    assert torch.equal(again(TOKENS), expected)
    assert written(tmp_path) == {f"deep/er/{name}" for name in written(out)}
    assert "'The Eiffel Tower is located in the city of' -> 'Rome', layer 1" in printed
    assert ("'Big Ben is a' -> 'bridge'" in printed) == (count == 2)


def test_a_composed_file_is_exported_as_its_edits_are(folder, edits, tmp_path):
    together = compose(Edit.load(path) for path in edits).save(tmp_path / "both.safetensors")
    succeed("export", together, "--model", folder, "--out", tmp_path / "one")
    succeed("export", *edits, "--model", folder, "--out", tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_peft_writes_one_adapter_of_all_edits(folder, edits, tmp_path):
    printed = succeed("export", *edits, "--peft", "--model", folder, "--out", tmp_path / "lora")
    assert written(tmp_path / "lora") == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text())["r"] == 2
    assert "'Big Ben is a' -> 'bridge'" in printed


def test_what_is_refused_leaves_nothing(folder, family_dir, statistics, edits, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "does not exist" in fail("export", tmp_path / "none", "--model", folder, *out)
    assert "holds 'key_covariance'" in fail("export", statistics, "--model", folder, *out)
    assert "belongs to the model" in fail("export", edits[0], "--model", family_dir("gptj"), *out)
    assert "in the same dtype" in fail("export", edits[0], "--model", folder, "--dtype", "bfloat16", *out)
    assert "does not name a file" in fail("export", "hf://owner/name", "--model", folder, *out)
    assert "is not empty; name a new folder" in fail("export", edits[0], "--model", folder, "--out", edits[0].parent)
    assert "is not a folder" in fail("export", edits[0], "--model", folder, "--out", edits[0])
    assert not list(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_nothing(folder, edits, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "no space left on device" in fail("export", edits[0], "--model", folder, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())
