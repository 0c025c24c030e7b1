"""`tl-rome push`: to a hub on this machine, or into a folder."""

import pytest
from support.cli import fail, succeed, written
from support.families import KINDS

from tl_rome import Edit, KeyCovariance, Rome
from tl_rome.cli.demo_run import FACT, NEW
from tl_rome.facts import EditRequest

pytestmark = pytest.mark.leg("3.9")

PLAIN = {"eiffel.safetensors", "README.md"}
ALL = PLAIN | {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def edit(tiny, statistics, tmp_path):
    model = tiny("gpt2", KINDS[0])
    request = EditRequest(FACT.template, FACT.subject, NEW)
    return Rome(KeyCovariance.load(statistics), ("",))(model, request).save(tmp_path / "eiffel.safetensors")


def test_an_edit_with_and_without_its_adapter(hub, folder, edit, tmp_path):
    assert "pushed hf://someone/plain/eiffel.safetensors" in succeed("push", edit, "someone/plain", "--private")
    assert hub.files("someone/plain").keys() == PLAIN
    assert hub.private["someone/plain"]
    succeed("push", edit, "someone/lora", "--model", folder)
    assert hub.files("someone/lora").keys() == ALL
    assert Edit.load("hf://someone/lora/eiffel.safetensors").request.target_new == NEW
    succeed("push", edit, "someone/dry", "--model", folder, "--dry-run", tmp_path / "dry")
    assert written(tmp_path / "dry") == ALL
    assert "someone/dry" not in hub.repositories


def test_statistics(hub, statistics):
    succeed("push", statistics, "someone/statistics")
    assert KeyCovariance.load(f"hf://someone/statistics/{statistics.name}").layer == 1


def test_what_is_refused(hub, edit, statistics, tmp_path, folder):
    assert "does not exist" in fail("push", tmp_path / "none", "a/b")
    assert "write 'owner/name'" in fail("push", edit, "name")
    assert "--model is for edits" in fail("push", statistics, "a/b", "--model", folder)
    assert "is not empty" in fail("push", edit, "a/b", "--dry-run", tmp_path)
    assert not hub.repositories
