"""A store keeps results of different runs apart and loses nothing."""

import json
from dataclasses import replace

import pytest
import torch
from support.results import case, measurement

from tl_rome.counterfact.evaluation.store import RunStore, editor_line, load_results, unedited_line
from tl_rome.counterfact.results import Divergence
from tl_rome.errors import ModelMismatchError, StorageError

SETTINGS = {"model": "m", "dataset": "d", "seed": 0}
BEFORE = measurement(False, [], [True])
AFTER = measurement(True, [True], [False])
BOTH = case(3, AFTER, BEFORE, editor="ft", config="c1", divergence=Divergence((0.5,)), seconds=2.0)
FAILED = case(4, None, BEFORE, editor="ft", config="c1", error="it diverged")


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "run", SETTINGS)
    with store.open_unedited() as ledger:
        ledger.append(unedited_line(BOTH), unedited_line(case(4, None, BEFORE)))
    return store


def put(store, *results):
    with store.open_editor(results[0].editor, results[0].config, {}) as ledger:
        ledger.append(*map(editor_line, results))


def test_results_come_back_with_what_they_belong_to(store):
    put(store, BOTH, FAILED)
    other = case(3, BEFORE, BEFORE, editor="a b/c", config="c2")
    put(store, other)
    assert load_results(store.folder) == [other, BOTH, FAILED]
    assert store.results([("ft", "c1")]) == [BOTH, FAILED]


def test_without_editors_there_are_results_of_the_unedited_model(store):
    found = load_results(store.folder)
    assert [(each.case_id, each.editor, each.after) for each in found] == [(n, "unedited", BEFORE) for n in (3, 4)]


def test_unedited_measurements_are_on_disk_once(store):
    put(store, BOTH, FAILED)
    line = json.loads((store.folder / "editors" / "ft-c1.jsonl").read_text("utf-8").splitlines()[1])
    assert not {"before", "rewrite", "model"} & line.keys()
    first, second = load_results(store.folder)
    assert first.before == second.before == BEFORE


def test_states_come_back_bit_for_bit_and_damaged_ones_are_refused(store):
    states = {"neighborhood": torch.randn(2, 4).bfloat16(), "essence": torch.randn(1, 4).bfloat16()}
    store.put_states(3, states)
    found = store.states(3)
    assert found.keys() == states.keys()
    assert all(torch.equal(found[name], states[name]) for name in states)
    with pytest.raises(StorageError, match="does not exist"):
        store.states(4)
    next(store.folder.glob("states/*")).write_bytes(b"torn")
    with pytest.raises(StorageError, match="damaged"):
        store.states(3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "x"}, ModelMismatchError, "made with model 'm', not 'x'"),
        ({"dataset": "x"}, StorageError, "made with dataset 'd', not 'x'"),
        ({"seed": 1, "kl": True}, StorageError, "made with kl None, not True, seed 0, not 1"),
    ],
)
def test_a_store_of_something_else_is_refused(store, change, error, message):
    put(store, BOTH)
    other = RunStore(store.folder, SETTINGS | change)
    for opened in (other.open_unedited(), other.open_editor("ft", "c1", {})):
        with pytest.raises(error, match=message), opened:
            pass


def test_folders_that_are_not_stores_are_refused(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        load_results(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), RunStore(tmp_path / "file", SETTINGS).open_unedited():
        pass


def test_states_of_another_record_or_store_are_refused(store, tmp_path):
    states = {"essence": torch.ones(1, 4)}
    store.put_states(3, states)
    store.put_states(4, states)
    (store.folder / "states/3.safetensors").replace(store.folder / "states/4.safetensors")
    with pytest.raises(StorageError, match=r"4\.safetensors holds states of record 3"):
        store.states(4)
    other = RunStore(tmp_path / "other", SETTINGS | {"seed": 1})
    other.put_states(4, states)
    (other.folder / "states/4.safetensors").replace(store.folder / "states/4.safetensors")
    with pytest.raises(StorageError, match="made with seed 1, not 0"):
        store.states(4)


def test_results_that_do_not_belong_together_are_refused(store, tmp_path):
    put(store, BOTH, FAILED)
    file = store.folder / "unedited.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(StorageError, match=r"line 3 of .*ft-c1.jsonl is of record 4, which unedited.jsonl .* lacks"):
        load_results(store.folder)
    file.write_bytes(whole)
    other = RunStore(tmp_path / "other", SETTINGS | {"seed": 1})
    put(other, replace(BOTH, config="c2"))
    next(other.folder.glob("editors/*.jsonl")).replace(store.folder / "editors" / "other.jsonl")
    with pytest.raises(StorageError, match=r"other.jsonl was made with seed 1, not 0"):
        load_results(store.folder)


def test_a_record_that_occurs_twice_counts_once(store):
    put(store, BOTH)
    put(store, BOTH)
    assert load_results(store.folder) == [BOTH]
