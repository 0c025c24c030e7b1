"""Reading COUNTERFACT: the sample that ships, a file, or a data set of the `datasets` library.

Two layouts are known on the hub: the released records ("azhx/counterfact"), and the flat table of prompts and targets
for tracing ("NeelNanda/counterfact-tracing"), which has the rewrite only.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.errors import NetworkError, RecordError, StorageError
from tl_rome.storage.hub import hub_silence
from tl_rome.storage.json_text import parse_json
from tl_rome.storage.layouts import name_layout
from tl_rome.storage.text import ending, is_pointer, read_text, refuse_pointer

SAMPLE = "sample"
"""Name of the records that ship with the package."""
SAMPLE_FILE = "counterfact_sample.jsonl"
"""Where they are, in `tl_rome/data`."""
_SOURCES = (
    "give a .json, .jsonl (both may be gzipped) or .parquet file, a folder, or the name of a data set on the hub; "
    f"{SAMPLE!r} needs no download"
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REWRITE = "write its facts as COUNTERFACT records, with a prompt, a subject, target_new and target_true"


def load_counterfact(source: str | Path = SAMPLE, *, split: str | None = None) -> list[CounterFactRecord]:
    """Read records.

    Args:
        source: "sample"; a `.json` file (one record or a list of them), `.jsonl` or `.parquet` file, the first two also
            gzipped (`.json.gz`); a folder that `datasets` wrote or can read; or the name of a data set on the hub,
            such as "azhx/counterfact".
        split: Part of a data set of several parts; None takes all of them, one after the other.

    Returns:
        The records in the order of the source.

    Raises:
        RecordError: If the source has no record or a malformed one; the message names the record and the field, or the
            data set where it is another one.
        StorageError: If the source cannot be read.
    """
    if source == SAMPLE:
        text = resources.files("tl_rome.data").joinpath(SAMPLE_FILE).read_text("utf-8")
        return parse_records(_json_lines(text, "the sample"), "the sample")
    if ending(source) in (".json", ".jsonl"):
        return parse_records(read_rows(source), str(source))
    return parse_records(load_rows(str(source), split), str(source))


def parse_records(rows: Iterable[Any], source: str) -> list[CounterFactRecord]:
    """Make records of their JSON forms.

    Args:
        rows: Records as in appendix H, with `subject` or `entity`; or rows of the flat layout.
        source: What to call the rows in errors.

    Raises:
        RecordError: If there is none, one is malformed, or two have the same case_id.
    """
    records: dict[int, CounterFactRecord] = {}
    for index, row in enumerate(rows):
        nested = _from_flat(row, index) if isinstance(row, Mapping) and "target_false" in row else row
        try:
            record = CounterFactRecord.from_dict(nested, f"number {index}")
        except RecordError as error:
            layout = name_layout(row, "COUNTERFACT", _REWRITE)
            raise RecordError(f"{source}: {f'number {index} {layout}' if layout else error}") from error
        if record.case_id in records:
            raise RecordError(f"{source}: record {record.case_id}: case_id occurs twice; results are kept by it")
        records[record.case_id] = record
    if not records:
        raise RecordError(f"{source} holds no records")
    return list(records.values())


def _from_flat(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A row of the flat layout, whose targets begin with a space, as a record without tests."""
    targets = {new: row.get(old) for new, old in (("target_new", "target_false"), ("target_true", "target_true"))}
    stripped = {name: text.strip() if isinstance(text, str) else text for name, text in targets.items()}
    identified = {"target_new": row.get("target_false_id"), "target_true": row.get("target_true_id")}
    return {
        "case_id": index,
        "requested_rewrite": {
            "prompt": row.get("relation"),
            "relation_id": row.get("relation_id"),
            "subject": row.get("subject"),
            **{name: {"str": text, "id": identified[name]} for name, text in stripped.items()},
        },
        "paraphrase_prompts": [],
        "neighborhood_prompts": [],
        "generation_prompts": [],
    }


def read_rows(path: str | Path) -> Iterable[Any]:
    """What a JSON file lists, or the lines of a JSONL file; either may be gzipped.

    Raises:
        RecordError: If the file is empty or is not what its name says.
        StorageError: If it cannot be read.
    """
    text = read_text(path)
    if not text.strip():
        raise RecordError(f"{path} is empty")
    if ending(path) == ".jsonl":
        return _json_lines(text, str(path))
    try:
        data = parse_json(text)
    except ValueError as error:
        remedy = "; if every line is a record, name it .jsonl" if str(error).startswith("Extra data") else ""
        raise RecordError(f"{path} is not JSON ({error}){remedy}") from error
    return data if isinstance(data, list) else [data]


def _json_lines(text: str, name: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield parse_json(line)
            except ValueError as error:
                raise RecordError(f"line {number} of {name} is not JSON ({error})") from error


def load_rows(name: str, split: str | None = None) -> Iterator[Any]:
    """Rows of a data set: saved to disk by `datasets`, a Parquet file, a local folder, or on the hub.

    Raises:
        NetworkError: If it is on the hub, and that does not answer as it should.
        StorageError: If it cannot be read, or has no such split.
    """
    folder = Path(name)
    if folder.is_file() and ending(name) != ".parquet":
        raise StorageError(f"cannot tell from its name what {name} holds; {_SOURCES}")
    if not folder.exists() and _HUB_NAME.fullmatch(name):
        silence = hub_silence(f"datasets/{name}/resolve/main/README.md")
        if silence is not None:
            remedy = f"HF_HUB_OFFLINE=1 reads a copy in the hub's cache; or {_SOURCES}"
            raise NetworkError(f"cannot read {name!r} ({silence}); {remedy}")
    from datasets import DatasetDict, load_dataset, load_from_disk

    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            data = load_from_disk(name)
        elif ending(name) == ".parquet":
            data = load_dataset("parquet", data_files=name)
        else:
            data = load_dataset(name)
    except Exception as error:  # those of the hub, the network, files and Arrow share no base class
        for file in (folder, *folder.rglob("*")):
            if is_pointer(file):
                refuse_pointer(file)
        if not folder.exists() and not isinstance(
            error, OSError | ValueError | RuntimeError
        ):  # the client is at a loss
            told = f"{type(error).__name__}: {error}"
            raise NetworkError(f"the hub's answer for {name!r} is of no use ({told})") from error
        raise _unreadable(name, error) from error
    parts = {str(name): part for name, part in data.items()} if isinstance(data, DatasetDict) else {split or "": data}
    if split is not None and split not in parts:
        raise StorageError(f"{name} has no split {split!r}; it has {', '.join(parts)}")
    rows = chain.from_iterable(parts.values() if split is None else (parts[split],))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _unreadable(name, error) from error
        yield row


def _unreadable(name: str, error: Exception) -> StorageError:
    return StorageError(f"cannot read {name!r} with datasets ({type(error).__name__}: {error}); {_SOURCES}")
