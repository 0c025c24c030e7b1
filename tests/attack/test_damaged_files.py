"""Every kind of file, damaged in every way: refused with an error of ours, or read as what it was.

A file of the package's own carries checksums. What others publish does not, so damage to that may change what it says;
then it is read as such or refused.
"""

import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.aged import age_lines, age_tensors
from support.average_example import average_of, made_trace
from support.damaged import damages, json_bytes, odd_arrays, other_json
from support.evaluation import RECORDS, RandomEdit
from support.families import KINDS
from support.known import known_to
from support.localization import made_report
from support.records import GAZI, changed
from support.results import case, measurement
from support.training import SMALL, trained

from tl_rome.counterfact import LocalizationReport, load_counterfact, load_references
from tl_rome.counterfact.dataset.relations import parse_relations
from tl_rome.counterfact.dataset.wikidata import WikiDataNeighbors
from tl_rome.counterfact.evaluation.store import RunStore, editor_line, load_results, unedited_line
from tl_rome.counterfact.experiments.sequential import sequential_edits
from tl_rome.editors import Edit, EditSequence, KeyCovariance, Mend, compose, import_npz
from tl_rome.editors.covariance.moments import KeyMoments
from tl_rome.errors import NetworkError, StorageError, TLRomeError
from tl_rome.fact_files import Target, load_facts, load_pararel
from tl_rome.facts import Fact
from tl_rome.models import smollm2
from tl_rome.patching import AverageTrace, TraceResult, collect_known_facts
from tl_rome.patching.averaging.trace_store import TraceStore
from tl_rome.storage.files import load

FACT = Fact("In {} is", "Eiffel Tower", "Paris")
SETTINGS = {"model": "m", "dataset": "d", "seed": 0}


@dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    make: Callable[[Path, Any], object]
    """Writes them into a folder."""
    read: Callable[[Path, Any], Any]
    """What they hold."""
    checked: bool = True
    """Whether damage is noticed."""
    lines: bool = False
    """Whether what is read may lack records, which are then done again."""


def plain(value: Any) -> Any:
    """A value that can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else repr(value)


def an_edit(model, number=0):
    return RandomEdit()(model, RECORDS[number].request)


def statistics(model):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return KeyCovariance(root @ root.T, 1, 100, "texts", False, "abc", root[0], "float32")


def make_moments(folder, model):
    moments = KeyMoments.zeros(model, [1])
    moments.second[1].copy_(torch.eye(64))
    moments.count, moments.texts = 7, 3
    moments.save(folder / "x", model, "texts")


def make_traces(folder, model):
    store = TraceStore.begin(folder, {"model": "0123456789abcdef", "seed": 0})
    store.put(FACT, made_trace(prompt=FACT.prompt))
    store.put_failure(Fact("{} is", "Rome"), ValueError("it failed"))


def read_traces(folder, model):
    store = TraceStore(folder)
    return [store.get(FACT, "mlp_out"), store.traces(), store.failures()]


def make_results(folder, model):
    store, before = RunStore(folder, SETTINGS), measurement(False, [], [True])
    cases = [case(number, before, before, editor="ft", config="c1") for number in (3, 4)]
    with store.open_unedited() as ledger:
        ledger.append(*map(unedited_line, cases))
    with store.open_editor("ft", "c1", {}) as ledger:
        ledger.append(*map(editor_line, cases))


def briefly_trained(model, checkpoint=None):
    return trained(model, replace(SMALL, rank=1, max_steps=1), checkpoint=checkpoint)


def make_training(folder, model):
    briefly_trained(model, folder / "x")


def whole(editor):
    return [editor.network.state_dict(), editor.matrices, editor.config, editor.log]


def states(folder):
    return RunStore(folder, SETTINGS)


def known(folder, model):
    return collect_known_facts(model, known_to(model, 2), store=folder / "x", progress=False)


def sequential(folder, model):
    return sequential_edits(model, RECORDS[:2], RandomEdit(), [2], store=folder, progress=False)


def make_model(folder, model):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100))
    smollm2._write_manifest(folder)


def read_model(folder, model):
    if (damage := smollm2._damage(folder)) is not None:
        raise StorageError(damage)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


class Offline(WikiDataNeighbors):
    """Answers kept on disk alone; `fill` is given for what is not there."""

    fill: Any = None

    def _ask(self, query):
        if self.fill is None:
            raise NetworkError("no network")
        return self.fill


def neighbors(folder, fill=None):
    asked = Offline(cache=folder)
    asked.fill = fill
    return asked("P159", Target("Paris", "Q90"))


def make_npz(folder, model):
    np.savez(folder / "x.npz", **{"mom2.mom2": np.eye(64, dtype=np.float32), "mom2.count": np.array(5)})


def write(name: str, *contents: Any) -> Callable[[Path, Any], object]:
    """Writes values as lines of JSON."""

    def make(folder, model):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\n".join(map(json_bytes, contents)))

    return make


def make_pararel(folder, model):
    write("patterns/P19.jsonl", {"pattern": "[X] was born in [Y]."})(folder, model)
    write("facts/P19.jsonl", {"sub_label": "Rome", "obj_label": "Italy"})(folder, model)


REFERENCES = {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "A", "text": "A is here."}]}
RELATION = {"templates": ["{} is in"], "facts": {"France": ["Paris", "Lyon"]}}
PAIR = {"prompt": "Paris is in", "subject": "Paris", "attribute": "France"}
KINDS_OF_FILES = {
    "edit": Kind(lambda f, m: an_edit(m).save(f / "x"), lambda f, m: Edit.load(f / "x").to_file()),
    "sequence": Kind(
        lambda f, m: compose([an_edit(m), an_edit(m, 1)]).save(f / "x"),
        lambda f, m: [edit.to_file() for edit in EditSequence.load(f / "x").edits],
    ),
    "trace": Kind(lambda f, m: made_trace().save(f / "x"), lambda f, m: TraceResult.load(f / "x")),
    "average": Kind(
        lambda f, m: average_of([made_trace(), made_trace(seed=1)]).save(f / "x"),
        lambda f, m: AverageTrace.load(f / "x"),
    ),
    "localization": Kind(lambda f, m: made_report().save(f / "x"), lambda f, m: LocalizationReport.load(f / "x")),
    "covariance": Kind(lambda f, m: statistics(m).save(f / "x"), lambda f, m: KeyCovariance.load(f / "x")),
    "checkpoint": Kind(make_moments, lambda f, m: KeyMoments.load(f / "x", m, [1], "texts")),
    "trained editor": Kind(lambda f, m: briefly_trained(m).save(f / "x"), lambda f, m: whole(Mend.load(f / "x", m))),
    "training": Kind(make_training, lambda f, m: whole(briefly_trained(m, f / "x"))),
    "states": Kind(lambda f, m: states(f).put_states(3, {"a": torch.ones(2, 3)}), lambda f, m: states(f).states(3)),
    "traces": Kind(make_traces, read_traces),
    "results": Kind(make_results, lambda f, m: load_results(f), lines=True),
    "known facts": Kind(known, known),
    "scores": Kind(sequential, sequential),
    "model": Kind(make_model, read_model),
    "neighbors": Kind(lambda f, m: neighbors(f, ["Rome", "Lyon"]), lambda f, m: neighbors(f)),
    "npz": Kind(make_npz, lambda f, m: import_npz(f / "x.npz", m, 1)),
    "records": Kind(
        write("x.json", [GAZI, changed("case_id", value=7)]), lambda f, m: load_counterfact(f / "x.json"), checked=False
    ),
    "lines of records": Kind(
        write("x.jsonl", GAZI, changed("case_id", value=7)), lambda f, m: load_counterfact(f / "x.jsonl"), checked=False
    ),
    "facts": Kind(
        write("x.jsonl", {"template": "{} is in", "subject": "Paris", "target": "France", "joiner": " "}),
        lambda f, m: load_facts(f / "x.jsonl"),
        checked=False,
    ),
    "pairs": Kind(write("x.json", [PAIR, PAIR]), lambda f, m: load_facts(f / "x.json"), checked=False),
    "pararel": Kind(make_pararel, lambda f, m: [load_pararel(f), load_facts(f)], checked=False),
    "references": Kind(write("x.json", [REFERENCES]), lambda f, m: load_references(f / "x.json"), checked=False),
}


@pytest.fixture(scope="session")
def model(tiny):
    return tiny("llama", KINDS[0])


@pytest.fixture(scope="session")
def originals(model, tmp_path_factory):
    """Contents of the files of each kind, by name, and what they hold."""
    found = {}
    for name, kind in KINDS_OF_FILES.items():
        folder = tmp_path_factory.mktemp("original")
        kind.make(folder, model)
        whole = contents(folder)
        found[name] = whole, plain(kind.read(folder, model))
    return found


def contents(folder):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content for name, content in files.items() if not name.endswith(".lock")}


def place(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def foreign(content, victim):
    """Whether a file's header says that it holds something else; another file of one kind is as good."""
    ours, theirs = (re.search(rb'kind\\*": \\*"([^"\\]+)', each) for each in (victim, content))
    return content != victim and (ours is None or theirs is None or ours[1] != theirs[1])


def try_to_read(kind, folder, model):
    """What the files hold; None if they are refused, which leaves them as they were."""
    before = contents(folder)
    try:
        return plain(kind.read(folder, model))
    except TLRomeError:
        assert contents(folder) == before
        return None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A new folder for each attempt."""
    place = tmp_path_factory.mktemp("damaged")
    return (place / str(number) for number in count())


@pytest.fixture(scope="module", autouse=True)
def no_log_lines():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", KINDS_OF_FILES)
@given(data=st.data())
def test_damage_is_refused_or_harmless(name, data, originals, model, folders):
    kind, (files, whole) = KINDS_OF_FILES[name], originals[name]
    victim = data.draw(st.sampled_from(sorted(files)))
    others = [content for other in originals.values() for content in other[0].values()]
    damaged = data.draw(damages(files[victim], [other for other in others if foreign(other, files[victim])]))
    found = try_to_read(kind, place(next(folders), files | {victim: damaged}), model)
    if found is not None and kind.lines:
        assert all(each in whole for each in found)
    elif found is not None and kind.checked:
        assert found == whole


def aged(path, kind):
    """The header of a file of tensors, which is then written anew without a checksum, and the tensors."""
    tensors, header = load(age_tensors(path, kind), kind, warn=False)
    return tensors, header


AGED = {
    "edit": "edit",
    "sequence": "edit_sequence",
    "trace": "trace",
    "average": "average trace",
    "localization": "localization report",
    "covariance": "key_covariance",
    "checkpoint": "key_moments",
}
"""Kinds of tensor files, by what their headers say."""


@pytest.mark.parametrize("name", AGED)
@given(data=st.data())
def test_headers_of_unchecked_files_that_say_something_else(name, data, originals, model, folders):
    folder = place(next(folders), originals[name][0])
    tensors, header = aged(folder / "x", AGED[name])
    header = data.draw(other_json(header))
    if data.draw(st.booleans()):
        victim = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(victim)
        odd = (tensor[:0], tensor[None], tensor.flatten()[:1], tensor.flatten()[0], tensor.long(), tensor.half())
        tensors |= {data.draw(st.sampled_from((victim, "other", "0.x"))): data.draw(st.sampled_from(odd)).clone()}
    save_file(tensors, folder / "x", {"tl_rome": json.dumps(header)})
    try_to_read(KINDS_OF_FILES[name], folder, model)


@pytest.mark.parametrize("name", ["results", "known facts", "scores", "traces", "neighbors", "model"])
@given(data=st.data())
def test_unchecked_lines_that_say_something_else(name, data, originals, model, folders):
    folder = place(next(folders), originals[name][0])
    own = sorted(file for file in originals[name][0] if not file.endswith(".safetensors"))
    path = folder / ("manifest.json" if name == "model" else data.draw(st.sampled_from(own)))
    text = age_lines(path).read_text("utf-8")
    lines = [json.loads(text)] if name == "model" else [json.loads(line) for line in text.splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = data.draw(other_json(lines[number]))
    path.write_bytes(b"".join(json_bytes(line) + b"\n" for line in lines))
    try_to_read(KINDS_OF_FILES[name], folder, model)


@pytest.mark.parametrize(
    ("name", "file", "value"),
    [
        ("records", "x.json", [GAZI]),
        ("lines of records", "x.jsonl", GAZI),
        ("facts", "x.jsonl", {"template": "{} is in", "subject": "Paris", "target": "France", "joiner": " "}),
        ("pairs", "x.json", [PAIR]),
        ("pararel", "facts/P19.jsonl", {"sub_label": "Rome", "obj_label": "Italy"}),
        ("references", "x.json", [REFERENCES]),
    ],
)
@given(data=st.data())
def test_published_files_that_say_something_else(name, file, value, data, originals, model, folders):
    folder = place(next(folders), originals[name][0] | {file: json_bytes(data.draw(other_json(value)))})
    try_to_read(KINDS_OF_FILES[name], folder, model)


@given(value=other_json(RELATION))
def test_relations_that_say_something_else(value):
    with suppress(TLRomeError):
        parse_relations({"P17": json.dumps(value)}, {})


@given(data=st.data())
def test_statistics_of_odd_numbers(data, model, folders):
    folder = next(folders)
    folder.mkdir()
    odd = odd_arrays()
    total, count = (data.draw(st.sampled_from([*odd, fine])) for fine in (np.eye(64), np.array(5)))
    np.savez(folder / "x.npz", **{"mom2.mom2": total, "mom2.count": count})
    try_to_read(KINDS_OF_FILES["npz"], folder, model)


def test_a_trace_of_another_fact_or_store_is_left_out(model, folders, originals):
    folder = place(next(folders), originals["traces"][0])
    store, other = TraceStore(folder), replace(FACT, target="Rome")  # the same prompt
    [path] = folder.glob("mlp_out/*.safetensors")
    store.put(other, made_trace(prompt=FACT.prompt))
    [stray] = {*folder.glob("mlp_out/*.safetensors")} - {path}
    path.write_bytes(stray.read_bytes())
    assert TraceStore(folder).get(FACT, "mlp_out") is None
    assert TraceStore(folder).missing(FACT, ["mlp_out"]) == ["mlp_out"]
    assert TraceStore(folder).missing(other, ["mlp_out"]) == []
