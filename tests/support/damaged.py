"""Ways in which a file can be damaged, and JSON that says something else, as strategies of Hypothesis."""

import copy
import gzip
import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

JUNK = (
    b"",
    b"\n",
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'"text"\n',
    b"NaN\n",
    b"[" * 20_000,
    b'{"a": ' * 20_000,
    b'{"settings": ' + b"9" * 5000 + b"}\n",
    b"9" * 5000 + b"\n",
    b"\xff\xfe[\x00]\x00",
    b'["\\ud83d"]\n',
    b"\xef\xbb\xbf[]",
    b"\x1f\x8b\x08\x00",
    gzip.compress(b"[]")[:-4],
    b"PK\x03\x04" + b"\x00" * 40,
    b"PK\x05\x06" + b"\x00" * 18,
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,), }",
    b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.",
    b"\xff" * 8 + b"{}",
    b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    b"PAR1" + b"\x00" * 20 + b"PAR1",
    bytes(range(256)) * 4,
    "東京\n".encode("utf-16"),
)
"""Contents that are nobody's file, or another program's."""
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 10**9, 10**400, 0.5, 1e308, float("nan")),
    *("", "x", "{}", "\ud83d", [], [0], ["x"], [[]], {}, {"x": 1}, [[[[[]]]]]),
)


@st.composite
def damages(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes:
    """A file's content with a flipped bit, a cut, an insertion or a run of equal bytes in it, or other content."""
    kind = draw(st.sampled_from(("flip", "cut", "end", "insert", "repeat", "run", "junk", "other")))
    place = draw(st.integers(0, len(content) - 1))
    length = draw(st.integers(1, 200))
    match kind:
        case "flip":
            return content[:place] + bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) + content[place + 1 :]
        case "cut":
            return content[:place] + content[place + length :]
        case "end":
            return content[:place]
        case "insert":
            return content[:place] + draw(st.binary(min_size=1, max_size=20)) + content[place:]
        case "repeat":
            return content[:place] + content[max(0, place - length) :]
        case "run":
            run = bytes([draw(st.sampled_from((0, 32, 48, 255)))]) * min(length, len(content) - place)
            return content[:place] + run + content[place + len(run) :]
        case "junk":
            return draw(st.sampled_from(JUNK))
    return draw(st.sampled_from(others))


@st.composite
def other_json(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one part, however deep, replaced, taken out, or given a neighbour."""
    value = copy.deepcopy(value)
    parent: Any = None
    key, part = None, value
    while isinstance(part, dict | list) and part and (parent is None or draw(st.integers(0, 3))):
        parent, key = part, draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        part = part[key]
    new = draw(st.sampled_from(_VALUES))
    if parent is None:
        return new
    match draw(st.sampled_from(("replace", "replace", "remove", "add"))):
        case "replace":
            parent[key] = new
        case "remove":
            del parent[key]
        case _ if isinstance(parent, dict):
            parent["added"] = new
        case _:
            parent.insert(key, new)
    return value


def json_bytes(value: Any) -> bytes:
    """Any value as JSON in ASCII, as other programs write it."""
    return json.dumps(value).encode()


def odd_arrays() -> list[Any]:
    """Arrays that are no matrix of real numbers, or have an unusual form."""
    plain = np.eye(64, dtype=np.float32)
    return [
        *(plain.astype(kind) for kind in (complex, int, bool, ">f4", "S4", "U4", object, np.float16, "M8[s]")),
        *(plain[:0], plain[0], plain[None], np.array(None), np.float32(1), np.zeros((64, 64), [("a", "f4")])),
    ]
