"""What `load_model` passes on to transformers: where a model is from, if its code runs, how its weights are kept."""

import shutil

import pytest
import torch
from support.edits import LAYER, REQUEST, editor
from support.families import KINDS, build_family
from support.quantised import RoundedConfig
from transformers import AutoConfig, AutoModelForCausalLM

from tl_rome import edited_rows, load_model
from tl_rome.counterfact import me_ppl
from tl_rome.errors import InputError, ModelMismatchError, ModelUnavailableError, UnsupportedModelError
from tl_rome.running.forward import run

KIND = KINDS[0]
TOKENS = torch.arange(12)[None]


def plain(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache with two revisions of one model, and no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--tiny"
    for seed, (name, commit) in enumerate({"main": "0" * 40, "second": "1" * 40}.items()):
        build_family("llama", repository / "snapshots" / commit, seed)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    return tmp_path


@torch.no_grad()
def test_a_revision_is_loaded(hub):
    snapshots = hub / "models--someone--tiny" / "snapshots"
    for options, commit in (({}, "0" * 40), ({"revision": "second"}, "1" * 40)):
        model = load_model("someone/tiny", model_class=KIND, cache_dir=hub, progress=False, **options)
        torch.testing.assert_close(run(model, TOKENS), plain(snapshots / commit)(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_a_token_is_passed_on_and_not_told(monkeypatch):
    given = {}

    def refuse(*args, **options):
        given.update(options)
        raise OSError("no such model")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr("tl_rome.models.hugging_face.hub_silence", lambda place: None)
    with pytest.raises(ModelUnavailableError) as caught:
        load_model("someone/tiny", token="hf_secret", revision="second", progress=False)
    assert (given["token"], given["revision"], given["trust_remote_code"]) == ("hf_secret", "second", False)
    assert "hf_secret" not in str(caught.value)


def test_code_of_others_runs_only_if_it_is_trusted(family_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder, ran = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(family_dir("llama"), folder)
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM as L\n"
        f"Path({str(ran)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class LlamaForCausalLM(L):\n    config_class = OwnConfig\n"
    )
    config = (folder / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "own"')
    auto = '"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.LlamaForCausalLM"}, '
    (folder / "config.json").write_text(config.replace("{", "{" + auto, 1))
    with pytest.raises(UnsupportedModelError, match="trust_remote_code"):
        load_model(str(folder), model_class="bridge", progress=False)
    assert not ran.exists()
    model = load_model(str(folder), model_class="bridge", trust_remote_code=True, progress=False)
    assert ran.exists()
    expected = plain(family_dir("llama"))(TOKENS).logits
    torch.testing.assert_close(run(model, TOKENS), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_quantised_model_is_a_bridge_that_runs_edits_by_hooks(tiny, family_dir):
    """Truth is transformers' own quantised model, with the edit added to its layer's output."""
    source, whole = str(family_dir("llama")), tiny("llama", KIND)
    edit = editor(whole)(whole, REQUEST)
    model = load_model(source, quantization_config=RoundedConfig(), progress=False)
    twin = plain(source, quantization_config=RoundedConfig())
    unedited = twin(TOKENS).logits
    torch.testing.assert_close(run(model, TOKENS), unedited, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(unedited, run(whole, TOKENS), atol=1e-3)
    left, right = edit.updates[0].left.float(), edit.updates[0].right.float()
    twin.model.layers[LAYER].mlp.down_proj.register_forward_hook(lambda _, given, out: out + given[0] @ left @ right.T)
    with edited_rows(model, [edit], same_weights=False):
        torch.testing.assert_close(run(model, TOKENS), twin(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert me_ppl(model) > 1
    with pytest.raises(UnsupportedModelError, match=r"edited_rows\(model, \[edit\], same_weights=F"):
        edit.apply(model)
    with pytest.raises(ModelMismatchError, match="made on other weights"), edited_rows(model, [edit]):
        pass


def test_an_edit_of_another_size_is_refused_whatever_the_weights(tiny):
    llama = tiny("llama", KIND)
    with pytest.raises(ModelMismatchError, match="where this model asks for"):
        with edited_rows(tiny("gpt2", KIND), [editor(llama)(llama, REQUEST)], same_weights=False):
            pass


@torch.no_grad()
def test_a_device_map_makes_a_bridge_that_stays_where_it_is(family_dir):
    model = load_model(str(family_dir("gpt2")), device_map={"": "cpu"}, progress=False)
    assert type(model).__name__ == "TransformerBridge"
    expected = plain(family_dir("gpt2"))(TOKENS).logits
    torch.testing.assert_close(run(model, TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_what_excludes_each_other_is_refused(family_dir):
    source = str(family_dir("llama"))
    with pytest.raises(InputError, match="device 'cpu' and a device_map are given"):
        load_model(source, device="cpu", device_map="auto", progress=False)
    with pytest.raises(InputError, match="revision is for names on the hub"):
        load_model(source, revision="second", progress=False)


@pytest.mark.leg("3.9")
def test_a_hooked_transformer_takes_over_no_packed_weights(family_dir):
    with pytest.raises(UnsupportedModelError, match="HookedTransformer cannot take over; use model_class='bridge'"):
        load_model(str(family_dir("llama")), model_class="hooked", quantization_config=RoundedConfig(), progress=False)
