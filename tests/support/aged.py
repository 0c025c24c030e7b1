"""Files as earlier versions of the package wrote them: in schema 1, without checksums."""

import json
import re
from pathlib import Path

from safetensors.torch import save_file

from tl_rome.storage.files import load


def age_lines(path: Path) -> Path:
    """Take the checksums out of a file of sealed lines."""
    text = re.sub(r'(, )?"sha256": "[0-9a-f]{16}"\}$', "}", path.read_text("utf-8"), flags=re.MULTILINE)
    path.write_text(text.replace('"schema": 2', '"schema": 1', 1), "utf-8")
    return path


def age_tensors(path: Path, kind: str) -> Path:
    """Write a file of tensors without its checksum."""
    tensors, header = load(path, kind)
    save_file(tensors, path, {"tl_rome": json.dumps({**header, "schema": 1})})
    return path
