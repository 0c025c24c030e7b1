"""JSON texts: read so that whatever is wrong with them is a `ValueError`, and lines that carry their own checksum.

A sealed line ends with a field `sha256`, over all that stands before it and over a key: lines of a file have the
checksum of its first line as theirs, so that those of another file are told apart. A line without that field comes from
an earlier version of this package, and cannot be checked.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_SEAL = re.compile(r'(?:, )?"sha256": "([0-9a-f]{16})"\}$')
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON writes half a character, alone or beside the other half."""


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: If it is not JSON in UTF-8, is nested too deeply, or has a number of too many digits.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def refuse_halves(text: str, value: Any) -> None:
    """Refuse a JSON text with half a character (a lone surrogate), which nothing can be done with later.

    Args:
        text: The JSON text.
        value: What it says.

    Raises:
        ValueError: If there is one.
    """
    if _HALF.search(text):
        try:
            to_json(value)
        except UnicodeEncodeError as error:
            raise ValueError("it holds half a character (a lone surrogate); write the whole one") from error


def to_json(value: Any, **options: Any) -> str:
    """JSON text that can be written as UTF-8.

    Args:
        value: JSON-serialisable.
        **options: Those of `json.dumps`.

    Raises:
        ValueError: If it holds something that JSON has no form for, half a character, or itself.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, **options)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    text.encode()
    return text


def seal(record: Mapping[str, Any], key: str = "") -> str:
    """A record as one line of JSON, without the line's end, that carries its checksum.

    Raises:
        ValueError: As `to_json` does.
    """
    body = to_json(dict(record))
    return f'{body[:-1]}{", " if record else ""}"sha256": "{_checksum(body, key)}"}}'


def unseal(line: str | bytes, key: str = "") -> tuple[dict[str, Any], str | None]:
    """The record of a line and its checksum, None for one that carries none.

    Raises:
        ValueError: If the line is not a JSON object, or not what its checksum says.
    """
    text = line.decode() if isinstance(line, bytes) else line
    found = _SEAL.search(text)
    body = text if found is None else f"{text[: found.start()]}}}"
    if found is not None and found[1] != _checksum(body, key):
        raise ValueError("it is not what its checksum says")
    record = parse_json(body)
    if not isinstance(record, dict):
        raise ValueError("it is not an object")
    return record, None if found is None else found[1]


def _checksum(body: str, key: str) -> str:
    return hashlib.sha256(f"{key}{body}".encode()).hexdigest()[:16]
