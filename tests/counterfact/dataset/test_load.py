"""The same records come from every source, and files that hold something else say so."""

import gzip
import json

import pytest
from support.records import GAZI, changed

from tl_rome.counterfact import CounterFactRecord, load_counterfact
from tl_rome.errors import RecordError, StorageError

RECORD = CounterFactRecord.from_dict(GAZI)
OTHER = changed("case_id", value=7)
RELEASED = [RECORD.to_dict(), CounterFactRecord.from_dict(OTHER).to_dict()]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 45108470\n"
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

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
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

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(StorageError, match=r"cannot read 'no/such' .*'sample' needs no download"):
        load_counterfact("no/such")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", r"x\.json is not JSON"),
        ("x.jsonl", json.dumps(GAZI) + "\n{", r"line 2 of .*x\.jsonl is not JSON"),
        (
            "x.json",
            json.dumps(GAZI) + "\n" + json.dumps(OTHER),
            r"Extra data.*; if every line is a record, name it \.j",
        ),
        ("x.json", " \n", r"x\.json is empty"),
        ("x.jsonl", "", r"x\.jsonl is empty"),
        ("x.json", "[]", r"x\.json holds no records"),
        ("x.json", json.dumps([GAZI, GAZI]), "record 1067: case_id occurs twice"),
        ("x.json", json.dumps([GAZI, changed("case_id")]), r"x\.json: record number 1: case_id is missing"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(RecordError, match=message):
        load_counterfact(tmp_path / name)


FOREIGN = {
    "zsRE in MEND's layout": (
        {
            "subject": "a",
            "src": "b?",
            "pred": "c",
            "rephrase": "d?",
            "alt": "e",
            "answers": ["c"],
            "loc": "f",
            "cond": "g",
        },
        "it has src, rephrase, alt, loc",
    ),
    "MQuAKE": (
        {"case_id": 1, "requested_rewrite": [{"prompt": "{} is"}] * 99, "questions": ["a?"], "new_answer": "b"},
        "it has requested_rewrite, questions, new_answer",
    ),
    "UnKE": (
        {"id": 0, "question": "a?", "answer": "b", "para_question": "c?", "sub_question": ["d?"]},
        "it has question, para_question, answer",
    ),
    "RippleEdits": (
        {"example_type": "recent", "edit": {"prompt": "a is b."}, "Logical_Generalization": []},
        "it has edit, Logical_Generalization",
    ),
    "KnowEdit": (
        {"subject": "a", "prompt": "b", "target_new": "c", "ground_truth": "d", "portability": {}, "locality": {}},
        "it has prompt, target_new, portability, locality",
    ),
    "EasyEdit": (
        {"case_id": 0, "prompt": "a is", "target_new": "c", "ground_truth": "d", "rephrase_prompt": "e"},
        "it has prompt, target_new, rephrase_prompt",
    ),
    "known facts": (
        {"known_id": 0, "subject": "a", "attribute": "c", "prompt": "a is", "template": "{} is"},
        "not of COUNTERFACT; read it with load_facts",
    ),
    "reference texts": (
        {"relation_id": "P1", "target_id": "Q1", "samples": []},
        "not of COUNTERFACT; read it with load_references",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_data_sets_are_called_what_they_are(tmp_path, name):
    row, message = FOREIGN[name]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row, row]), "utf-8")
    with pytest.raises(RecordError, match=f"number 0 is a record of {name}.*{message}") as caught:
        load_counterfact(path)
    assert len(str(caught.value).replace(str(path), "")) < 250


def test_a_malformed_record_is_not_taken_for_another_data_set(tmp_path):
    row = {**changed("paraphrase_prompts"), "questions": [], "answer": ""}
    (tmp_path / "x.json").write_text(json.dumps(row), "utf-8")
    with pytest.raises(RecordError, match="record 1067: paraphrase_prompts is missing"):
        load_counterfact(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["records.JSON", "records.json.gz", "records.Jsonl", "records.JSONL.GZ"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_endings_of_any_case_gzipped_files_and_byte_order_marks(tmp_path, name, mark):
    data = mark + json.dumps(GAZI).encode()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.lower().endswith(".gz") else data)
    assert load_counterfact(tmp_path / name) == [RECORD]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.json", POINTER, "x.json is a Git LFS pointer, .* run `git lfs pull`"),
        ("x.jsonl", POINTER, "x.jsonl is a Git LFS pointer"),
        ("x.parquet", POINTER, "x.parquet is a Git LFS pointer"),
        ("data/train.parquet", POINTER, "train.parquet is a Git LFS pointer"),
        ("x.json.gz", gzip.compress(b"[" * 99, mtime=0)[:20], "cannot read .*x.json.gz"),
        ("x.json", "é".encode("utf-16"), "cannot read .*; save it as UTF-8"),
        ("x.csv", b"a,b", r"cannot tell from its name what .*x\.csv holds; give a \.json, \.jsonl"),
    ],
)
def test_files_that_hold_something_else_say_so(tmp_path, cache, name, data, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with pytest.raises(StorageError, match=message):
        load_counterfact(path if path.parent == tmp_path else path.parent)


def test_half_a_character_is_a_fault_of_its_record(tmp_path):
    odd = changed("neighborhood_prompts", 0, value="It is \ud83d")
    (tmp_path / "x.jsonl").write_text(json.dumps(OTHER) + "\n" + json.dumps(odd), "utf-8")
    with pytest.raises(RecordError, match=r"record 1067: neighborhood_prompts\[0\]: .* holds half a character"):
        load_counterfact(tmp_path / "x.jsonl")


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        load_counterfact(tmp_path / "absent.json")


def test_released_records_are_read(shared_data):
    path = shared_data / "data" / "counterfact" / "records_400.json"
    records = load_counterfact(path)
    assert [record.to_dict() for record in records] == json.loads(path.read_text("utf-8"))
    assert all(len(record.neighborhood_prompts) == len(record.generation_prompts) == 10 for record in records)


@pytest.mark.parametrize("content", [b"PAR1" + bytes(40) + b"PAR1", b"junk", b""])
def test_a_damaged_parquet_file_is_a_storage_error(tmp_path, monkeypatch, content):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(StorageError, match=r"cannot read .*x\.parquet' with datasets"):
        load_counterfact(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"case_id": ' * 20_000], ids=["lists", "digits", "objects"]
)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_json_that_python_does_not_read_is_a_record_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecordError, match=rf"{name} is not JSON"):
        load_counterfact(tmp_path / name)
