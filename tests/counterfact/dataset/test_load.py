"""The same records come out of every kind of source."""

import json

import pytest
from support.records import GAZI, changed

from tl_rome.counterfact import CounterFactRecord, load_counterfact
from tl_rome.errors import RecordError, StorageError

RECORD = CounterFactRecord.from_dict(GAZI)
OTHER = changed("case_id", value=7)
RELEASED = [RECORD.to_dict(), CounterFactRecord.from_dict(OTHER).to_dict()]
FLAT = {
    "relation": "The mother tongue of {} is",
    "relation_prefix": "The mother tongue of",
    "relation_suffix": "is",
    "prompt": "The mother tongue of Danielle Darrieux is",
    "relation_id": "P103",
    "target_false_id": "Q1860",
    "target_true_id": "Q150",
    "target_true": " French",
    "target_false": " English",
    "subject": "Danielle Darrieux",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keep what `datasets` caches out of the user's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_json_of_one_record_and_of_a_list(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(GAZI), "utf-8")
    assert load_counterfact(path) == [RECORD]
    path.write_text(json.dumps([GAZI, OTHER]), "utf-8")
    assert [record.case_id for record in load_counterfact(str(path))] == [1067, 7]


def test_json_lines_with_separators_inside_a_text(tmp_path):
    path = tmp_path / "records.jsonl"
    odd = changed("neighborhood_prompts", 0, value="one line\u2028of two")
    path.write_text(json.dumps(odd, ensure_ascii=False) + "\n\n" + json.dumps(OTHER) + "\n", "utf-8")
    assert [record.case_id for record in load_counterfact(path)] == [1067, 7]


def test_folder_that_datasets_saved(tmp_path, cache):
    from datasets import Dataset

    Dataset.from_list(RELEASED).save_to_disk(tmp_path / "saved")
    assert [record.case_id for record in load_counterfact(tmp_path / "saved")] == [1067, 7]
    assert load_counterfact(tmp_path / "saved")[0].to_dict() == RELEASED[0]


def test_folder_in_the_hubs_layout_with_two_splits(tmp_path, cache):
    from datasets import Dataset

    for split, row in zip(("train", "test"), RELEASED, strict=True):
        Dataset.from_list([row]).to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    assert [record.case_id for record in load_counterfact(tmp_path / "hub")] == [1067, 7]
    assert [record.case_id for record in load_counterfact(tmp_path / "hub", split="test")] == [7]
    with pytest.raises(StorageError, match="no split 'dev'; it has train, test"):
        load_counterfact(tmp_path / "hub", split="dev")


def test_a_hub_name_goes_to_datasets_and_flat_rows_are_rewrites_without_tests(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name):
        asked.append(name)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([FLAT])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (record,) = load_counterfact("NeelNanda/counterfact-tracing")
    assert asked == ["NeelNanda/counterfact-tracing"]
    assert record.prompts("rewrite") == (FLAT["prompt"],)
    assert (record.request.target_new, record.request.target_true) == ("English", "French")
    assert record.requested_rewrite.target_new.id == "Q1860"
    assert record.paraphrase_prompts == ()


def test_an_unknown_name_says_what_can_be_read(monkeypatch):
    import datasets

    def load_dataset(name):
        raise FileNotFoundError(f"no data set {name}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(StorageError, match=r"cannot read 'no/such' .*'sample' needs no download"):
        load_counterfact("no/such")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", r"x\.json is not JSON"),
        ("x.jsonl", json.dumps(GAZI) + "\n{", r"line 2 of .*x\.jsonl is not JSON"),
        ("x.json", "[]", r"x\.json holds no records"),
        ("x.json", json.dumps([GAZI, GAZI]), "record 1067: case_id occurs twice"),
        ("x.json", json.dumps([GAZI, changed("case_id")]), r"x\.json: record number 1: case_id is missing"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(RecordError, match=message):
        load_counterfact(tmp_path / name)


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        load_counterfact(tmp_path / "absent.json")


def test_released_records_are_read(shared_data):
    path = shared_data / "data" / "counterfact" / "records_400.json"
    records = load_counterfact(path)
    assert [record.to_dict() for record in records] == json.loads(path.read_text("utf-8"))
    assert all(len(record.neighborhood_prompts) == len(record.generation_prompts) == 10 for record in records)
