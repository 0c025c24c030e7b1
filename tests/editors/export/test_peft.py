"""Adapters, loaded and merged by the real `peft` in plain transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.compare import same, weights
from support.edits import LAYER, REQUEST, editor, random_edit
from support.families import FAMILY_KINDS, KINDS, build_family
from transformers import AutoModelForCausalLM

from tl_rome.editors import DenseUpdate, Edit, KeyCovariance, LowRankUpdate, Rome, compose
from tl_rome.errors import EditStateError, InputError, ModelMismatchError, StorageError
from tl_rome.running.matrices import MlpMatrix
from tl_rome.tokens import encode

peft = pytest.importorskip("peft")

KIND = KINDS[0]
TOKENS = torch.arange(20)[None]


def plain(source):
    return AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()


def adapted(source, folder):
    return peft.PeftModel.from_pretrained(plain(source), str(folder)).eval()


@torch.no_grad()
def far(found, expected):
    return float((found - expected).norm() / expected.norm())


def of_updates(edit, *updates):
    return Edit(updates, edit.request, edit.receipt, edit.model, {})


def low_rank(model, layer, rank, seed, name="W_out"):
    d_in, d_out = MlpMatrix(layer, name).weight(model).shape
    generator = torch.Generator().manual_seed(seed)
    left, right = (0.2 * torch.randn(size, rank, generator=generator) for size in (d_in, d_out))
    return LowRankUpdate(layer, left, right, name)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_the_adapter_gives_the_edited_logits_attached_and_merged(tiny, family_dir, tmp_path, family, kind):
    model, source = tiny(family, kind), str(family_dir(family))
    edit, before = editor(model)(model, REQUEST), weights(model)
    assert edit.to_peft(tmp_path / "lora", model, source) == tmp_path / "lora"
    assert same(weights(model), before)
    with edit.applied(model):
        expected = model(TOKENS)
    assert far(plain(source)(TOKENS).logits, expected) > 1e-3
    loaded = adapted(source, tmp_path / "lora")
    assert far(loaded(TOKENS).logits, expected) < 1e-5
    assert far(loaded.merge_and_unload()(TOKENS).logits, expected) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ranks_of_a_sequence_add_up_per_module(tiny, family_dir, tmp_path, family):
    """Layer 1 has ranks 1 and 2, layer 2 a rank of 2, layer 3 of 1: one adapter with patterns."""
    model, source = tiny(family, KIND), str(family_dir(family))
    first = editor(model)(model, REQUEST)
    second = of_updates(first, *(low_rank(model, layer, rank, layer) for layer, rank in ((1, 2), (2, 2), (3, 1))))
    sequence = compose([first, second])
    sequence.to_peft(tmp_path, model, source)
    ranks = {
        name: len(part) for name, part in load_file(tmp_path / "adapter_model.safetensors").items() if "_A" in name
    }
    assert sorted(ranks.values()) == [1, 2, 3]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], sorted(config["rank_pattern"].values())) == (3, [1, 2])
    with sequence.applied(model):
        expected = model(TOKENS)
    assert far(adapted(source, tmp_path)(TOKENS).logits, expected) < 1e-5


def test_matrices_before_the_activation_are_told_apart(tiny, family_dir, tmp_path):
    model, source = tiny("llama", KIND), str(family_dir("llama"))
    first = editor(model)(model, REQUEST)
    edit = of_updates(first, *(low_rank(model, 2, 2, seed, name) for seed, name in enumerate(("W_in", "W_gate"))))
    edit.to_peft(tmp_path, model, source)
    assert {name.split(".")[-3] for name in load_file(tmp_path / "adapter_model.safetensors")} == {
        "up_proj",
        "gate_proj",
    }
    with edit.applied(model):
        expected = model(TOKENS)
    assert far(adapted(source, tmp_path)(TOKENS).logits, expected) < 1e-5


def test_two_adapters_stack(tiny, family_dir, tmp_path):
    model, source = tiny("llama", KIND), str(family_dir("llama"))
    first = editor(model)(model, REQUEST)
    second = random_edit(first, LAYER, 3)
    for name, edit in (("one", first), ("two", second)):
        edit.to_peft(tmp_path / name, model, source)
    loaded = adapted(source, tmp_path / "one")
    loaded.load_adapter(str(tmp_path / "two"), "two")
    loaded.add_weighted_adapter(["default", "two"], [1.0, 1.0], "both", combination_type="cat")
    loaded.set_adapter("both")
    with compose([first, second]).applied(model):
        expected = model(TOKENS)
    assert far(loaded(TOKENS).logits, expected) < 1e-5


def test_the_readme_says_what_it_belongs_to_and_warns(tiny, family_dir, tmp_path):
    model, source = tiny("llama", KIND), str(family_dir("llama"))
    edit = editor(model)(model, REQUEST)
    edit.to_peft(tmp_path, model, source)
    text = (tmp_path / "README.md").read_text(encoding="utf-8").replace("\\", "")
    assert "base_model" not in text  # a folder is no name of the hub
    assert f"from_pretrained({source!r})" in text
    assert edit.model in text
    assert all(f"| {name} |" in text for name, _ in edit.receipt.rows())
    assert edit.receipt.warnings
    head = text.split("\n## ")[0]
    assert all(warning in head for warning in edit.receipt.warnings)


@pytest.mark.slow
def test_the_readme_of_the_embedded_model_runs_in_plain_transformers(smollm2, tmp_path, monkeypatch):
    model = smollm2(KIND)
    edit = Rome(KeyCovariance.shipped(model), ("",))(model, REQUEST)
    edit.to_peft(tmp_path / "this folder", model, "smollm2-135m")
    code = (tmp_path / "this folder/README.md").read_text(encoding="utf-8").split("```")[1].removeprefix("python")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    tokens = encode(model, REQUEST.fact.prompt)[None]
    with edit.applied(model):
        expected = model(tokens)
    assert far(names["model"].eval()(tokens).logits, expected) < 1e-5


def test_what_is_no_adapter_of_this_checkpoint_is_refused_and_leaves_nothing(fresh_tiny, family_dir, tmp_path):
    model, source, out = fresh_tiny("gpt2", KIND), str(family_dir("gpt2")), tmp_path / "out"
    edit = editor(model)(model, REQUEST)
    dense = of_updates(edit, DenseUpdate(1, torch.ones(128, 32)))
    with pytest.raises(InputError, match="W_out of layer 1 is a full matrix, which no adapter of low rank holds"):
        dense.to_peft(out, model, source)
    other = build_family("gpt2", tmp_path / "other", seed=1)
    with pytest.raises(ModelMismatchError, match="gives other logits"):
        edit.to_peft(out, model, str(other))
    with edit.applied(model), pytest.raises(EditStateError, match="applied to this model already"):
        edit.to_peft(out, model, source)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        edit.to_peft(tmp_path / "file", model, source)
    assert not out.exists()
