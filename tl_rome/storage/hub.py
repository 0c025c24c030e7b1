"""Files on the model hub, within a bounded time: an edit or key statistics travel as one file.

Files come into repositories by `push_to_hub`, or by `hf upload owner/name eiffel.safetensors`, and others load them by
`Edit.load("hf://owner/name/eiffel.safetensors")` onto their own copy of the model, which its fingerprint makes sure of.

The hub's own client repeats a failed request for minutes, or for as long as the hub asks. So the hub is asked for a
sign of life first; without one, only what the client has in its cache is used.
"""

from pathlib import Path
from typing import Any

from tl_rome.errors import InputError, NetworkError, StorageError
from tl_rome.storage.deadline import within

PATIENCE = 20.0
"""Seconds in which the hub has to answer."""
_SCHEME = "hf://"
_TOO_MANY = 429


def local_path(location: str | Path, *, cache_dir: str | Path | None = None) -> Path:
    """Where a file is on this machine, fetched from the hub or its cache if need be.

    Args:
        location: A path, which is returned as it is, or `hf://owner/name/file`; a revision may follow the name, as in
            `hf://owner/name@main/file`.
        cache_dir: Cache folder in place of the hub's own.

    Raises:
        InputError: If an `hf://` location does not name owner, repository and file.
        NetworkError: If the hub does not answer, and the file is not in its cache.
        StorageError: If the file cannot be fetched.
    """
    if not str(location).startswith(_SCHEME):
        return Path(location)
    parts = str(location).removeprefix(_SCHEME).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{str(location)!r} does not name a file; write 'hf://owner/name/file.safetensors'")
    owner, (name, _, revision), file = parts[0], parts[1].partition("@"), parts[2]
    from huggingface_hub import hf_hub_download

    silence = hub_silence(f"{owner}/{name}/resolve/{revision or 'main'}/{file}")
    try:
        place: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
        return Path(hf_hub_download(f"{owner}/{name}", file, local_files_only=silence is not None, **place))
    except Exception as error:  # hub, network and file errors share no base class
        if silence:
            raise NetworkError(f"cannot fetch {str(location)!r}, which is not in the hub's cache: {silence}") from error
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"cannot fetch {str(location)!r}: {type(error).__name__}: {reason}; check the name and the network"
        ) from error


def hub_silence(path: str) -> str | None:
    """Why the hub cannot be asked now, in words; None if it can, or if the user has told its client to stay offline.

    Args:
        path: What will be asked for first, below the hub's address; whether it exists makes no difference.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    from huggingface_hub.utils import build_hf_headers, get_session

    url, options = f"{constants.ENDPOINT}/{path}", {"timeout": 2 * PATIENCE, "follow_redirects": False}
    try:
        answer = within(PATIENCE, lambda: get_session().head(url, headers=build_hf_headers(), **options))
        if answer.status_code != _TOO_MANY and answer.status_code < 500:
            return None
        problem = f"answers with status {answer.status_code} ({answer.reason_phrase})"
    except TimeoutError as error:
        problem = f"gives {error}"
    except Exception as error:  # of the hub's client, whose library changes between versions
        problem = f"cannot be asked ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    return f"{constants.ENDPOINT} {problem}; try again later, and check the network"
