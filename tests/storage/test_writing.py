"""What may be replaced, what is left of failures, and who may read what was written."""

import os
import stat

import pytest
from safetensors import SafetensorError

from tl_rome.errors import StorageError
from tl_rome.storage.ledger import open_ledger
from tl_rome.storage.writing import whole_folder, write_whole

pytestmark = pytest.mark.leg("3.9", "lowest")


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def put_ledger(path, data):
    with open_ledger(path, "results", {}):
        pass


@pytest.mark.parametrize("put", [write_whole, put_ledger])
def test_only_regular_files_are_replaced(tmp_path, put):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/full")
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder"), ("link", "a device")):
        with pytest.raises(StorageError, match=f"{name} is {kind}, not a regular file"):
            put(tmp_path / name, b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "link"}


@pytest.mark.parametrize("put", [write_whole, put_ledger])
def test_links_stay_and_their_targets_are_written(tmp_path, put):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("deep/target")  # which does not exist yet
    for _ in range(2):
        put(tmp_path / "link", b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "deep" / "target").stat().st_size
    os.symlink("round", tmp_path / "round")
    with pytest.raises(StorageError, match="cannot"):
        put(tmp_path / "round", b"new")


def test_permissions_are_those_of_the_umask_or_of_what_is_replaced(tmp_path, umask):
    assert mode(write_whole(tmp_path / "new", b"")) == 0o666 & ~umask
    (tmp_path / "new").chmod(0o600)
    assert mode(write_whole(tmp_path / "new", b"again")) == 0o600
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "a").touch(0o600)
    assert mode(tmp_path / "folder" / "a") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask


@pytest.mark.parametrize("path", ["x\0y", "x" * 300, "\ud83d"])
def test_names_that_no_file_can_have(tmp_path, path):
    with pytest.raises(StorageError, match="cannot"):
        write_whole(tmp_path / path, b"")


@pytest.mark.parametrize(
    "failure", [OSError("No space left on device"), SafetensorError("No space left"), Exception("No space left")]
)
def test_a_folder_appears_whole_or_not_at_all(tmp_path, failure):
    def fill(text, failure=None):
        with whole_folder(tmp_path / "a" / "model") as folder:
            (folder / "config.json").write_text(text)
            if failure is not None:
                raise failure

    with pytest.raises(StorageError, match=r"cannot write .*model: No space left"):
        fill("1", failure)
    assert not list((tmp_path / "a").iterdir())
    fill("1")
    (tmp_path / "a" / "model" / "own").touch()
    with pytest.raises(StorageError, match="No space left"):
        fill("2", failure)
    assert (tmp_path / "a" / "model" / "config.json").read_text() == "1"
    fill("2")
    assert (tmp_path / "a" / "model" / "config.json").read_text() == "2"
    assert {path.name for path in (tmp_path / "a").rglob("*")} == {"model", "config.json", "own"}


def test_errors_that_are_not_of_the_disk_pass(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "model"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is not a folder"), whole_folder(tmp_path / "file"):
        pass
