"""The file of a repository that fits a model, found by the fingerprints that files carry in their headers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_rome.editors.sharing.catalogue import belongs_to, describe, layers_of
from tl_rome.errors import InputError, ModelMismatchError, NetworkError, StorageError
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint, has_fingerprint, read_header
from tl_rome.storage.repository import Repository, repository_name


def find_on_hub(
    repo_id: str, model: HookedModel, kind: type, *, layer: int | None = None, token: str | None = None
) -> str:
    """The location of the one file in a repository that fits a model, for `load`; only headers are read.

    Without the hub, those files are looked at that its client has in its cache.

    Args:
        repo_id: `owner/name`; `@revision` may follow.
        model: What the file has to be for, in any class.
        kind: What it has to hold: `KeyCovariance`, `Mend`, `Edit` ...
        layer: Which layer it has to be of; None for any.
        token: Of the hub; None for the user's own.

    Returns:
        `hf://owner/name/file`.

    Raises:
        InputError: If the name of the repository is none, or nothing of that kind is shared.
        NetworkError: If the hub does not answer, and its client has nothing of the repository in its cache.
        ModelMismatchError: If there are such files, but none for the model, its BOS policy and the layer.
        StorageError: If the repository has no such file, or several that fit, or the hub refuses.
    """
    if not isinstance(getattr(kind, "kind", None), str):
        raise InputError(f"{kind.__name__} is nothing that is shared on the hub; give KeyCovariance, Edit, Mend, ...")
    name, revision = repository_name(repo_id)
    there = {file: header for file, header in _headers(repo_id, token).items() if header.get("kind") == kind.kind}
    shown = "; ".join(f"{file} ({_about(header)})" for file, header in sorted(there.items()))
    if not there:
        raise StorageError(f"{name} holds no file of kind {kind.kind!r}; check its name, and the revision")
    fits = [file for file, header in there.items() if _fits(header, model, layer)]
    if not fits:
        wanted = f"fingerprint {fingerprint(model)}, BOS {bool(model.cfg.default_prepend_bos)}"
        wanted += "" if layer is None else f", layer {layer}"
        raise ModelMismatchError(f"{name} has nothing for this model ({wanted}); it holds {shown}")
    if len(fits) > 1:
        raise StorageError(
            f"several files of {name} fit this model: {', '.join(sorted(fits))}; give the layer, or load the one that "
            f"you want by its name: {shown}"
        )
    return f"hf://{name}{f'@{revision}' if revision else ''}/{fits[0]}"


def _fits(header: Mapping[str, Any], model: HookedModel, layer: int | None) -> bool:
    bos = header.get("prepend_bos", bool(model.cfg.default_prepend_bos))
    on_layer = layer is None or layer in layers_of(header)
    return on_layer and bos == bool(model.cfg.default_prepend_bos) and has_fingerprint(model, belongs_to(header))


def _about(header: Mapping[str, Any]) -> str:
    layers = ", ".join(map(str, layers_of(header)))
    bos = f", BOS {header['prepend_bos']}" if "prepend_bos" in header else ""
    return f"{describe(header)}, layer {layers}, model {belongs_to(header)}{bos}"


def _headers(repo_id: str, token: str | None) -> Mapping[str, Mapping[str, Any]]:
    """Of all files of ours; without the hub, of those that its client has."""
    try:
        return Repository.look(repo_id, token).headers
    except NetworkError as error:
        from huggingface_hub import snapshot_download

        name, revision = repository_name(repo_id)
        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except Exception:  # nothing is there; what the network said is the reason
            raise error from None
        return {path.relative_to(folder).as_posix(): read_header(path) for path in folder.rglob("*.safetensors")}
