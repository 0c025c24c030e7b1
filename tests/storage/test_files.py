"""Files that come back as they were or not at all, and fingerprints that tell models apart."""

import json

import pytest
import torch
from safetensors.torch import save_file
from support.aged import age_tensors
from support.families import FAMILIES, KINDS, build_family
from support.traces import trace

from tl_rome.errors import ModelMismatchError, StorageError, UnsupportedModelError
from tl_rome.models.loading import load_model
from tl_rome.running.matrices import editable_matrices, w_out
from tl_rome.storage import files as storage
from tl_rome.storage.files import check_fingerprint, fingerprint, load, save
from tl_rome.storage.ledger import model_settings

pytestmark = pytest.mark.leg("3.9", "lowest")

each_kind = pytest.mark.parametrize("kind", KINDS)
TENSORS = {
    "u": torch.arange(6, dtype=torch.float32).view(2, 3).T,  # not contiguous
    "C": torch.eye(3, dtype=torch.float64),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "n": torch.tensor([3]),
}
HEADER = {"subject": "東京 \n“quoted”", "layers": [5, 6], "nested": {"seed": None, "sigma": 0.1 + 0.2}}


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / "edit.safetensors", "edit", TENSORS, HEADER)


def test_round_trip(saved):
    tensors, header = load(saved, "edit")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert header == {"kind": "edit", "schema": storage.SCHEMA_VERSION, **HEADER}


def test_equal_parts_make_equal_files(tmp_path):
    header = {"text": 'ü "quoted" \\ \x7f\n', "list": [1, 2]}
    files = [save(tmp_path / str(n), "test", {"b": torch.ones(3), "a": torch.zeros(2)}, header) for n in range(8)]
    assert len({file.read_bytes() for file in files}) == 1
    assert load(files[0], "test")[1]["text"] == header["text"]


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "runs" / "a" / "edit.safetensors"
    save(path, "edit", TENSORS, {"version": 1})
    assert save(str(path), "edit", {"u": torch.ones(1)}, {"version": 2}) == path
    assert load(str(path), "edit")[1]["version"] == 2
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(saved, monkeypatch, failure):
    def fail(source, target):
        assert source != str(target)
        raise failure

    old = saved.read_bytes()
    monkeypatch.setattr("os.replace", fail)
    expected = StorageError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="cannot write .*No space left" if expected is StorageError else None):
        save(saved, "edit", TENSORS, {})
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_places_that_cannot_be_written_to_are_named(saved):
    with pytest.raises(StorageError, match=rf"cannot write {saved}/inside.safetensors: "):
        save(saved / "inside.safetensors", "edit", TENSORS, {})  # its folder is a file
    with pytest.raises(StorageError, match=f"{saved.parent} is a folder, not a regular file"):
        save(saved.parent, "edit", TENSORS, {})  # the path itself is a folder
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"none.safetensors does not exist"):
        load(tmp_path / "none.safetensors", "edit")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_damaged(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StorageError, match=r"edit.safetensors is damaged or is not a tl_rome file .*; make it again"):
        load(saved, "edit")


def test_every_flipped_bit_is_refused_or_harmless(saved):
    content, (tensors, header) = saved.read_bytes(), load(saved, "edit")
    refused = 0
    for place in range(len(content)):
        flipped = bytes([content[place] ^ 1 << place % 8])
        saved.write_bytes(content[:place] + flipped + content[place + 1 :])
        try:
            found, said = load(saved, "edit")
        except StorageError:
            refused += 1
            continue
        assert said == header
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert refused > 0.9 * len(content)


def test_a_file_without_its_checksum_is_refused_unless_it_is_old(saved, caplog):
    tensors, header = load(saved, "edit")
    save_file(tensors, saved, {"tl_rome": json.dumps(header)})
    with pytest.raises(StorageError, match="does not hold what its checksum says"):
        load(saved, "edit")
    save(saved, "edit", tensors, header)
    assert not caplog.records
    assert load(age_tensors(saved, "edit"), "edit")[1] == header | {"schema": 1}
    assert f"{saved} was written by an earlier version, without checksums" in caplog.text
    caplog.clear()
    load(saved, "edit", warn=False)
    assert not caplog.records


def test_a_header_that_has_no_form_in_json_is_not_written(saved):
    before = saved.read_bytes()
    for value in ("\ud83d", {1}):
        with pytest.raises(StorageError, match=r"cannot write .* its header"):
            save(saved, "edit", TENSORS, {"value": value})
    assert saved.read_bytes() == before


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"tl_rome": "{"}, {"tl_rome": "[1]"}, {"tl_rome": "3"}])
def test_a_safetensors_file_of_another_program_is_refused(tmp_path, metadata):
    save_file({"u": torch.ones(1)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(StorageError, match="is damaged or is not a tl_rome file"):
        load(tmp_path / "other.safetensors", "edit")


def test_a_folder_or_text_is_no_file_of_ours(tmp_path):
    (tmp_path / "text").write_text("hello " * 100)
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "text", "is damaged or is not a tl_rome file")):
        with pytest.raises(StorageError, match=message):
            load(path, "edit")


def test_another_kind_or_schema_is_refused(saved, monkeypatch):
    with pytest.raises(StorageError, match="holds 'edit' in schema 2, not 'trace' in schema 2"):
        load(saved, "trace")
    monkeypatch.setattr(storage, "SCHEMA_VERSION", 3)
    newer = save(saved, "edit", TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(StorageError, match="holds 'edit' in schema 3, not 'edit' in schema 2"):
        load(newer, "edit")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    path = save(tmp_path / "c.safetensors", "edit", {"C": torch.tensor([1.0, value])}, {})
    with pytest.raises(StorageError, match="values that are not finite; make it again"):
        load(path, "edit")


# ---------------------------------------------------------------------------------------------------- fingerprints


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_is_the_same_in_both_classes_and_after_an_edit(fresh_tiny, family):
    models = [fresh_tiny(family, kind) for kind in KINDS]
    (before,) = {fingerprint(model) for model in models}
    for model in models:
        with torch.no_grad():
            for place in editable_matrices(model):
                place.weight(model).add_(1.0)
        check_fingerprint(model, before, "the edit")


@each_kind
def test_fingerprints_tell_families_seeds_and_dtypes_apart(tiny, tmp_path, kind):
    # The tiny Mistral and Llama have the very same weights, and differ in their attention windows alone.
    families = [fingerprint(tiny(family, kind)) for family in FAMILIES if family != "mistral"]
    seeds = [
        fingerprint(load_model(str(build_family("gpt2", tmp_path / str(seed), seed)), model_class=kind, progress=False))
        for seed in (1, 2)
    ]
    dtypes = [fingerprint(tiny("gpt2", kind, dtype)) for dtype in (torch.bfloat16, torch.float64)]
    found = [*families, *seeds, *dtypes]
    assert len(set(found)) == len(found)


@each_kind
@pytest.mark.parametrize("layer", [0, 3])
def test_every_layer_counts(fresh_tiny, kind, layer):
    model = fresh_tiny("llama", kind)
    before = fingerprint(model)
    with torch.no_grad():
        model.blocks[layer].attn.W_O.mul_(1.001)
    with pytest.raises(ModelMismatchError) as caught:
        check_fingerprint(model, before, "the covariance")
    message = str(caught.value)
    assert message.startswith(f"the covariance belongs to the model with fingerprint {before}, this model has ")
    assert "load the same checkpoint in the same dtype" in message


def test_headers_are_plain_json(saved):
    # Other programs can read them.
    from safetensors import safe_open

    with safe_open(saved, framework="pt") as file:
        assert json.loads(file.metadata()["tl_rome"])["subject"] == HEADER["subject"]


def quantise(model, monkeypatch):
    """Make weights unreadable, as TransformerLens does where they are packed."""

    def unreadable(self):
        raise NotImplementedError("packed in 4 bits")

    for owner, names in ((model.blocks[0].mlp, ("W_in", "W_out")), (model.blocks[0].attn, ("W_O",))):
        for name in names:
            monkeypatch.setattr(type(owner), name, property(unreadable), raising=False)


@each_kind
def test_weights_that_cannot_be_read_are_told_apart_as_they_are_stored(fresh_tiny, kind, tmp_path, monkeypatch):
    model, folder = fresh_tiny("llama", kind), build_family("llama", tmp_path / "other", 1)
    other = load_model(str(folder), model_class=kind, progress=False)
    readable = fingerprint(model)
    quantise(model, monkeypatch)
    with pytest.raises(
        UnsupportedModelError, match=r"cannot read W_out of layer 1 \(packed in 4 bits\); load the model"
    ):
        w_out(model, 1)
    assert len({readable, fingerprint(model), fingerprint(other)}) == 3
    assert model_settings(model)["model"] == fingerprint(model)
    unpacked = fingerprint(model)
    model.blocks[0].register_buffer("qweight", torch.ones(2, 3, dtype=torch.int32))  # as GPTQ keeps weights
    assert fingerprint(model) not in {unpacked, readable}


def test_a_quantised_model_is_traced(fresh_tiny, monkeypatch):
    model = fresh_tiny("llama", "bridge")
    expected = trace(model, "mlp_out", window=2)
    quantise(model, monkeypatch)
    found = trace(model, "mlp_out", window=2)
    assert torch.equal(found.scores, expected.scores)
    assert found.model == fingerprint(model) != expected.model
