"""Reference texts are the same from every source, and found by identifier or name."""

import gzip
import json

import pytest
from support.records import GAZI
from support.results import REWRITE

from tl_rome.counterfact.dataset.references import load_references
from tl_rome.errors import InputError, StorageError

TEXTS = ("Templeton is an office in Glasgow.", "The Clydesdale Bank is led from Glasgow.")
ROWS = [
    {"relation_id": "P159", "target_id": "Q4093", "name": f"entity {i}", "text": text} for i, text in enumerate(TEXTS)
]


def write_json(folder, target="target_id", value="Q4093"):
    groups = [
        {"relation_id": "P159", target: value, "samples": [{"name": row["name"], "text": row["text"]} for row in ROWS]},
        {"relation_id": "P159", "target_id": "Q90", "samples": [{"name": "another", "text": "An office in Paris."}]},
    ]
    path = folder / "attribute_snippets.json"
    path.write_text(json.dumps(groups), "utf-8")
    return path


@pytest.mark.parametrize("key", [("target_id", "Q4093"), ("target", "Glasgow"), ("target_id", "Glasgow")])
def test_json_like_the_released_one(tmp_path, key):
    references = load_references(write_json(tmp_path, *key))
    assert references.about(REWRITE) == list(TEXTS)
    assert "paris" in references.vectorizer.vocabulary_


def test_gzipped_json_and_lines_of_json(tmp_path):
    expected = load_references(write_json(tmp_path)).about(REWRITE)
    (tmp_path / "x.JSON.gz").write_bytes(gzip.compress(write_json(tmp_path).read_bytes()))
    assert load_references(tmp_path / "x.JSON.gz").about(REWRITE) == expected
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    assert load_references(tmp_path / "x.jsonl").about(REWRITE) == expected
    (tmp_path / "x.jsonl").write_text("[1]\n", "utf-8")
    with pytest.raises(InputError, match=r"number 0 is \[1\], not an object"):
        load_references(tmp_path / "x.jsonl")


def test_a_folder_of_ones_own(tmp_path):
    for row in ROWS:
        path = tmp_path / "P159" / "Glasgow" / f"{row['name']}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["text"], "utf-8")
    assert load_references(tmp_path).about(REWRITE) == list(TEXTS)


def test_a_datasets_data_set(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert load_references(tmp_path / "saved").about(REWRITE) == list(TEXTS)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", StorageError, "cannot read reference texts from"),
        ("", StorageError, "cannot read reference texts from .* is empty"),
        ('["text"]', InputError, "number 0 is 'text', not a group of reference texts"),
        ('[{"samples": ["text"]}]', InputError, "number 0 is {'samples': "),
        (json.dumps(GAZI), InputError, "number 0 is a record of COUNTERFACT .*; read it with load_counterfact"),
        ("[]", InputError, "there are no reference texts"),
        ('[{"relation_id": "P159"}]', InputError, "it needs relation_id, target_id, samples"),
        ('[{"relation_id": "P159", "samples": [{"text": "x"}]}]', InputError, "number 0 has no target_id"),
        ('[{"relation_id": "P1", "target": "x", "samples": [{"text": " "}]}]', InputError, "number 0 has no text"),
    ],
)
def test_broken_references_are_refused(tmp_path, content, error, message):
    (tmp_path / "broken.json").write_text(content, "utf-8")
    with pytest.raises(error, match=message):
        load_references(tmp_path / "broken.json")
