"""Small files shared through the model hub, so that an edit travels without the model it changes.

An edit is two vectors, some kilobytes. Put the file that `Edit.save` wrote into any repository of the hub
(`hf upload owner/name eiffel.safetensors`), and others load it by `Edit.load("hf://owner/name/eiffel.safetensors")`
onto their own copy of the model, which its fingerprint makes sure of.
"""

from pathlib import Path

from tl_rome.errors import InputError, StorageError

_SCHEME = "hf://"


def local_path(location: str | Path, *, cache_dir: str | Path | None = None) -> Path:
    """Where a file is on this machine, fetched from the hub or its cache if need be.

    Args:
        location: A path, which is returned as it is, or `hf://owner/name/file`; a revision may follow the name, as in
            `hf://owner/name@main/file`.
        cache_dir: Cache folder in place of the hub's own.

    Raises:
        InputError: If an `hf://` location does not name owner, repository and file.
        StorageError: If the file cannot be fetched.
    """
    if not str(location).startswith(_SCHEME):
        return Path(location)
    parts = str(location).removeprefix(_SCHEME).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{str(location)!r} does not name a file; write 'hf://owner/name/file.safetensors'")
    owner, (name, _, revision), file = parts[0], parts[1].partition("@"), parts[2]
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision or None, cache_dir=cache_dir))
    except Exception as error:  # hub, network and file errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"cannot fetch {str(location)!r}: {type(error).__name__}: {reason}; check the name and the network"
        ) from error
