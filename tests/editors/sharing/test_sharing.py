"""Files to a hub on this machine and back, by the hub's own client; what is refused leaves the repository as it was."""

import json

import pytest
import torch
from support.edits import LAYER, REQUEST, covariance, editor, random_edit
from support.families import KINDS
from transformers import AutoModelForCausalLM

from tl_rome.editors import DenseUpdate, Edit, EditSequence, KeyCovariance, KeyMemory, compose, find_on_hub, push_file
from tl_rome.errors import InputError, ModelMismatchError, NetworkError, StorageError

pytestmark = pytest.mark.leg("3.9")

KIND = KINDS[0]
REPO = "someone/eiffel"
FILES = {"edit.safetensors", "README.md"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
TOKENS = torch.arange(20)[None]


@pytest.fixture
def edit(tiny):
    model = tiny("llama", KIND)
    return editor(model)(model, REQUEST)


@pytest.fixture
def other(tiny):
    """Of another model."""
    model = tiny("gpt2", KIND)
    return editor(model)(model, REQUEST)


def unchanged(hub, repository, action, error, match):
    """Check that an action fails, and that the repository is as it was."""
    before = len(hub.repositories.get(repository, []))
    with pytest.raises(error, match=match):
        action()
    assert len(hub.repositories.get(repository, [])) == before


@pytest.mark.slow
def test_an_edit_travels_with_its_adapter_and_its_card(hub, tiny, family_dir, edit):
    peft = pytest.importorskip("peft")
    model, source = tiny("llama", KIND), str(family_dir("llama"))
    location = edit.push_to_hub(REPO, model=model, source=source)
    assert location == f"hf://{REPO}/edit.safetensors"
    assert hub.files(REPO).keys() == FILES | ADAPTER | {".gitattributes"} & hub.files(REPO).keys()
    assert len(hub.repositories[REPO]) == 2  # made empty, and one commit
    again = Edit.load(location, model)
    assert again.receipt == edit.receipt
    with again.applied(model):
        expected = model(TOKENS)
    plain = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(plain, REPO).eval()
    with torch.no_grad():
        assert float((adapted(TOKENS).logits - expected).norm() / expected.norm()) < 1e-5


def test_the_card_shows_receipt_warnings_and_how_to_load_it(hub, edit):
    edit.push_to_hub(REPO, source="someone/llama")
    card = hub.files(REPO)["README.md"].decode()
    head, body = card.split("---\n")[1:3]
    about = {name: json.loads(value) for name, _, value in (line.partition(": ") for line in head.splitlines())}
    assert about["base_model"] == "someone/llama"
    assert {"tl_rome", "model-editing"} <= {*about["tags"]}
    assert edit.receipt.warnings
    plain = body.replace("\\", "")
    for name, figures in edit.receipt.rows():
        assert f"| {name} | {figures.replace('&', '&amp;').replace('>', '&gt;')} |" in plain
    assert all(f": {warning}" in plain for warning in edit.receipt.warnings)
    assert edit.model in body
    assert f"edit = Edit.load('hf://{REPO}/edit.safetensors', model)" in body
    assert "PEFT" not in body


def test_sequences_and_what_is_no_adapter(hub, tiny, family_dir, edit):
    model, source = tiny("llama", KIND), str(family_dir("llama"))
    both = compose([edit, random_edit(edit, LAYER, 3)])
    location = both.push_to_hub("someone/both", file="both.safetensors")
    assert len(EditSequence.load(location, model).edits) == 2
    dense = Edit((DenseUpdate(1, torch.ones(128, 32)),), edit.request, edit.receipt, edit.model, {})
    unchanged(hub, "a/b", lambda: dense.push_to_hub("a/b", model=model, source=source), InputError, "full matrix")
    unchanged(hub, "a/b", lambda: edit.push_to_hub("a/b", model=model), InputError, "give source")


def test_statistics_are_found_by_model_and_layer_from_headers_alone(hub, tiny, monkeypatch):
    llama, gpt2 = tiny("llama", KIND), tiny("gpt2", KIND)
    given = [covariance(llama, 1), covariance(llama, 2), covariance(gpt2, 1)]
    locations = [each.push_to_hub("someone/statistics") for each in given]
    KeyMemory.empty(llama, [1]).push_to_hub("someone/statistics")
    card = hub.files("someone/statistics")["README.md"].decode()
    assert all(each.file_name in card and each.model in card for each in given)
    assert card.count("key statistics") == 3
    hub.sent.clear()
    for model, layer, expected in ((llama, 1, 0), (llama, 2, 1), (gpt2, None, 2)):
        found = find_on_hub("hf://someone/statistics", model, KeyCovariance, layer=layer)
        assert found == locations[expected]
    assert KeyCovariance.load(find_on_hub("someone/statistics", gpt2, KeyCovariance)).digest == given[2].digest
    with pytest.raises(ModelMismatchError, match=r"\(fingerprint .*, layer 2\); it holds"):
        find_on_hub("someone/statistics", gpt2, KeyCovariance, layer=2)
    with pytest.raises(StorageError, match="several files of someone/statistics fit this model"):
        find_on_hub("someone/statistics", llama, KeyCovariance)
    with pytest.raises(StorageError, match="holds no file of kind 'edit'"):
        find_on_hub("someone/statistics", llama, Edit)
    assert KeyMemory.load(find_on_hub("someone/statistics", llama, KeyMemory), llama).facts == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_on_hub("someone/statistics", gpt2, KeyCovariance) == locations[2]  # which was fetched
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        find_on_hub("someone/else", gpt2, KeyCovariance)


def test_a_large_file_is_not_fetched_to_be_looked_at(hub, tiny, tmp_path):
    model = tiny("llama", KIND)
    statistics = covariance(model)
    path = statistics.save(tmp_path / "large.safetensors")
    hub.commit("someone/large", {"large.safetensors": path.read_bytes() + bytes(1_000_000)})
    assert find_on_hub("someone/large", model, KeyCovariance) == "hf://someone/large/large.safetensors"
    assert sum(hub.sent) < 110_000


def test_pushing_again(hub, tiny, edit):
    edit.push_to_hub(REPO)
    first = hub.files(REPO)
    edit.push_to_hub(REPO)
    assert hub.files(REPO) == first
    changed = random_edit(edit, LAYER, 3)
    unchanged(
        hub, REPO, lambda: changed.push_to_hub(REPO), StorageError, r"edit\.safetensors with other content; .*--replace"
    )
    hub.commit(REPO, dict.fromkeys(ADAPTER, b"of the former one"))
    unchanged(hub, REPO, lambda: changed.push_to_hub(REPO), StorageError, "adapter_config.json")
    changed.push_to_hub(REPO, replace=True)
    assert hub.files(REPO).keys() == FILES
    assert len(hub.repositories[REPO]) == 4


def test_repositories_for_something_else_are_refused(hub, tiny, edit, other):
    edit.push_to_hub(REPO)
    unchanged(hub, REPO, lambda: other.push_to_hub(REPO, replace=True), ModelMismatchError, f"fingerprint {edit.model}")
    unchanged(hub, REPO, lambda: edit.push_to_hub(REPO, file="b.safetensors"), StorageError, "a repository of its own")
    statistics = covariance(tiny("llama", KIND))
    unchanged(hub, REPO, lambda: statistics.push_to_hub(REPO), StorageError, "a repository of its own")
    unchanged(hub, REPO, lambda: edit.push_to_hub(REPO, private=True), StorageError, "is public")
    hub.commit("someone/words", {"README.md": b"# My own words"})
    unchanged(
        hub, "someone/words", lambda: edit.push_to_hub("someone/words"), StorageError, "README.md with other content"
    )
    edit.push_to_hub("someone/hidden", private=True)
    assert hub.private["someone/hidden"]


def test_a_hub_that_refuses_or_fails(hub, edit, monkeypatch, tmp_path):
    path = edit.save(tmp_path / "edit.safetensors")
    edit.push_to_hub(REPO)

    def push():
        random_edit(edit, LAYER, 3).push_to_hub(REPO, replace=True)

    hub.refused = {"commit"}
    unchanged(hub, REPO, push, StorageError, "this token may only read.*make one that may write")
    hub.refused, hub.broken = set(), {"batch"}
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    unchanged(hub, REPO, push, NetworkError, "cannot write to someone/eiffel: .*nothing is lost")
    hub.broken = set()
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        unchanged(hub, REPO, push, NetworkError, "told to stay offline")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_another")
        unchanged(hub, "a/b", lambda: push_file(path, "a/b"), StorageError, "make one that may write")
        patch.delenv("HF_TOKEN")
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        unchanged(hub, REPO, push, StorageError, "no token of the hub: run `hf auth login`")
    for name in ("eiffel", "a/b/c", "../b"):
        with pytest.raises(InputError, match="write 'owner/name'"):
            push_file(path, name)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    unchanged(hub, "a/b", lambda: push_file(path, "a/b"), StorageError, "is damaged")


def test_a_repository_that_changed_since_it_was_looked_at(hub, edit, monkeypatch):
    edit.push_to_hub(REPO)

    from tl_rome.storage.repository import Repository

    write = Repository.write

    def late(self, *arguments, **options):
        hub.commit(REPO, {"theirs.txt": b"written meanwhile"})
        return write(self, *arguments, **options)

    monkeypatch.setattr(Repository, "write", late)
    with pytest.raises(StorageError, match="somebody wrote to it meanwhile"):
        random_edit(edit, LAYER, 3).push_to_hub(REPO, replace=True)
    assert hub.files(REPO)["theirs.txt"] == b"written meanwhile"


def test_a_dry_run_asks_nobody(hub, tiny, family_dir, edit, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    hub.broken = {"api"}
    model, source = tiny("llama", KIND), str(family_dir("llama"))
    location = edit.push_to_hub(REPO, model=model, source=source, dry_run=tmp_path / "out")
    assert location == f"hf://{REPO}/edit.safetensors"
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | ADAPTER
    assert Edit.load(tmp_path / "out/edit.safetensors", model).request == REQUEST
    assert not hub.repositories


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", "README.md", "adapter_model.safetensors", ""])
def test_a_file_has_a_plain_name_of_its_own(edit, tmp_path, name):
    (tmp_path / "inside").mkdir()
    for shared in (edit, KeyMemory({0: torch.eye(4, dtype=torch.float64)}, 1, "0" * 16, {0: "0" * 16})):
        with pytest.raises(InputError, match=r"cannot be the file's name; give one like '.*safetensors'"):
            shared.push_to_hub(REPO, file=name, dry_run=tmp_path / "inside")
    assert [path.name for path in tmp_path.rglob("*")] == ["inside"]
