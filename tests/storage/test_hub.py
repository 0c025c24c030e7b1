from pathlib import Path

import pytest
from support.edits import REQUEST, editor
from support.families import KINDS

from tl_rome.editors import Edit
from tl_rome.errors import InputError, StorageError
from tl_rome.storage.hub import local_path

pytestmark = pytest.mark.leg("3.9", "lowest")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache as the hub's client leaves it behind after one download, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "models--someone--edits"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT / "paris").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder / "snapshots" / COMMIT


def test_an_edit_from_a_repository_of_the_hub(tiny, hub_cache):
    model = tiny("llama", KINDS[0])
    edit = editor(model)(model, REQUEST)
    edit.save(hub_cache / "paris" / "eiffel.safetensors")
    cache = hub_cache.parents[2]
    location = "hf://someone/edits/paris/eiffel.safetensors"
    assert local_path(location, cache_dir=cache) == hub_cache / "paris" / "eiffel.safetensors"
    assert local_path(location.replace("edits", f"edits@{COMMIT}"), cache_dir=cache).is_file()
    loaded = Edit.load(str(local_path(location, cache_dir=cache)), model)
    assert loaded.request == edit.request


def test_load_takes_the_location_itself(tiny, hub_cache, monkeypatch):
    model = tiny("llama", KINDS[0])
    path = editor(model)(model, REQUEST).save(hub_cache / "eiffel.safetensors")
    asked = []

    def fetch(repo_id, filename, revision, cache_dir, local_files_only):
        asked.append((repo_id, filename, revision, local_files_only))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert Edit.load("hf://someone/edits@v1/eiffel.safetensors", model).request == REQUEST
    assert asked == [("someone/edits", "eiffel.safetensors", "v1", False)]


def test_paths_are_left_alone():
    assert local_path("here/it.safetensors") == Path("here/it.safetensors")


@pytest.mark.parametrize("location", ["hf://someone", "hf://someone/edits", "hf://someone/edits/"])
def test_locations_without_a_file(location):
    with pytest.raises(InputError, match="hf://owner/name/file"):
        local_path(location)


def test_what_cannot_be_fetched_says_so(hub_cache):
    with pytest.raises(StorageError, match=r"cannot fetch 'hf://someone/edits/other\.safetensors'"):
        local_path("hf://someone/edits/other.safetensors", cache_dir=hub_cache.parents[2])
