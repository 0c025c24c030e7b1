import json

import pytest

from tl_rome.storage.json_text import parse_json, refuse_halves, seal, to_json, unseal

pytestmark = pytest.mark.leg("3.9", "lowest")

RECORD = {"name": "東京 \n", "sha256": "0123456789abcdef"}


@pytest.mark.parametrize("record", [RECORD, {}, {"a": [1, {"b": None}]}])
def test_sealed_lines_are_json_and_come_back(record):
    line = seal(record, "key")
    assert "\n" not in line
    assert json.loads(line).keys() == record.keys() | {"sha256"}
    found, checksum = unseal(line.encode(), "key")
    assert found == record
    assert checksum == json.loads(line)["sha256"]


def test_every_changed_character_and_another_key_are_noticed():
    line = seal({"n": 12, "word": "ab"}, "key")
    for place in range(len(line)):
        for other in "x1 }":
            changed = line[:place] + other + line[place + 1 :]
            try:
                found, checksum = unseal(changed, "key")
            except ValueError:
                continue
            assert changed == line or checksum is None
            assert found["n"] == 12
    with pytest.raises(ValueError, match="not what its checksum says"):
        unseal(line, "other")


def test_unsealed_lines_have_no_checksum():
    assert unseal('{"a": 1}') == ({"a": 1}, None)
    with pytest.raises(ValueError, match="not an object"):
        unseal("[1]")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "", b"\xff"])
def test_whatever_is_wrong_with_a_text_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize("value", [{1, 2}, "\ud83d", {"a": "\ud83d"}, b"x"])
def test_what_has_no_form_in_json_is_a_value_error(value):
    with pytest.raises(ValueError, match=r"."):
        to_json(value)
    with pytest.raises(ValueError, match=r"."):
        seal({"value": value})


def test_half_a_character_is_found_and_a_whole_one_is_not():
    whole, half = r'["\ud83d\ude00"]', r'["\ud83d"]'
    refuse_halves(whole, parse_json(whole))
    with pytest.raises(ValueError, match="half a character"):
        refuse_halves(half, parse_json(half))
