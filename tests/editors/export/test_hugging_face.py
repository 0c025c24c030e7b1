import pytest
import torch
from safetensors import SafetensorError
from support.compare import same, weights
from support.edits import REQUEST, editor
from support.families import FAMILY_KINDS, KINDS, build_family
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tl_rome.editors import export_model
from tl_rome.editors.export.stored import stored_matrix
from tl_rome.errors import ModelMismatchError, ModelUnavailableError, StorageError, UnsupportedModelError
from tl_rome.models.loading import load_model
from tl_rome.running.matrices import MlpMatrix, editable_matrices

KIND = KINDS[0]
TOKENS = torch.arange(20)[None]


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_the_folder_reloads_with_the_logits_of_the_edited_model(fresh_tiny, family_dir, tmp_path, family, kind):
    model = fresh_tiny(family, kind)
    edit = editor(model)(model, REQUEST)
    before = model(TOKENS)
    with edit.applied(model):
        folder = export_model(model, str(family_dir(family)), tmp_path / "edited")
        edited = weights(model)
        expected = {again: load_model(str(folder), model_class=again, device="cpu", progress=False) for again in KINDS}
        logits = model(TOKENS)
    assert not torch.allclose(logits, before, rtol=1e-3)
    for again in expected.values():
        assert same(weights(again), edited)
    assert torch.equal(expected[kind](TOKENS), logits)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()(TOKENS).logits
    assert (plain - logits).norm() < 1e-5 * logits.norm()


def test_bfloat16_keeps_its_dtype(fresh_tiny, family_dir, tmp_path):
    model = fresh_tiny("llama", KIND, torch.bfloat16)
    edit = editor(model)(model, REQUEST)
    with edit.applied(model):
        export_model(model, str(family_dir("llama")), tmp_path)
        edited = weights(model)
    again = load_model(str(tmp_path), model_class=KIND, dtype=torch.bfloat16, device="cpu", progress=False)
    assert same(weights(again), edited)


def test_every_matrix_of_the_mlps_is_written(fresh_tiny, family_dir, tmp_path):
    model = fresh_tiny("llama", KIND)
    with torch.no_grad():
        for place in editable_matrices(model):
            place.weight(model).mul_(1 + 0.1 * place.layer)
        logits = model(TOKENS)
    folder = export_model(model, str(family_dir("llama")), tmp_path / "edited")
    assert torch.equal(load_model(str(folder), model_class=KIND, device="cpu", progress=False)(TOKENS), logits)


def test_another_checkpoint_is_refused(fresh_tiny, family_dir, tmp_path):
    other = build_family("llama", tmp_path / "other", seed=1)
    with pytest.raises(UnsupportedModelError, match="W_gate of layer 0 cannot be told apart among the 2 matrices"):
        export_model(fresh_tiny("llama", KIND), str(other), tmp_path / "edited")
    other = build_family("gpt2", tmp_path / "gpt2", seed=1)
    with pytest.raises(ModelMismatchError, match="gives other logits"):
        export_model(fresh_tiny("gpt2", KIND), str(other), tmp_path / "edited")
    assert not (tmp_path / "edited").exists()
    with pytest.raises(ModelUnavailableError, match="does not exist"):
        export_model(fresh_tiny("llama", KIND), str(tmp_path / "nothing" / "here"), tmp_path / "edited")


def test_indistinguishable_matrices_are_refused():
    block = torch.nn.ModuleDict({"up": torch.nn.Linear(8, 8), "down": torch.nn.Linear(8, 8)})
    with pytest.raises(UnsupportedModelError, match=r"W_out of layer 3 cannot be told apart among the 2 matrices"):
        stored_matrix(block, torch.ones(8, 8), MlpMatrix(3))


def test_other_weights_than_w_in_are_compared_through_the_logits(fresh_tiny, family_dir, tmp_path):
    model = fresh_tiny("llama", KIND)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(ModelMismatchError, match="gives other logits"):
        export_model(model, str(family_dir("llama")), tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


@pytest.mark.parametrize("writer", ["model", "tokenizer"])
def test_a_full_disk_leaves_nothing(fresh_tiny, family_dir, tmp_path, monkeypatch, writer):
    """Safetensors and tokenizers, which are written in Rust, have errors of their own."""
    model = fresh_tiny("llama", KIND)

    def full(*_, **__):
        raise SafetensorError("No space left on device") if writer == "model" else Exception("No space left on device")

    owner = PreTrainedModel if writer == "model" else PreTrainedTokenizerBase
    with monkeypatch.context() as patched:
        patched.setattr(owner, "save_pretrained", full)
        with pytest.raises(StorageError, match=r"cannot write .*edited: No space left on device"):
            export_model(model, str(family_dir("llama")), tmp_path / "edited")
    assert not list(tmp_path.iterdir())
    folder = export_model(model, str(family_dir("llama")), tmp_path / "edited")
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "new").stat().st_mode}
