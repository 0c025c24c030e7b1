"""Loading: the same numbers as Hugging Face for every family and class, a recorded BOS policy, and errors that help."""

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.compare import relative_error
from support.families import ADDS_BOS, FAMILIES, KINDS, N_CTX
from torch import Tensor

from tl_rome.errors import InputError, ModelUnavailableError, NumericsError, UnsupportedModelError
from tl_rome.models.loading import load_model

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)


def hugging_face_logits(folder: Path, tokens: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", local_files_only=True).eval()
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture
def variant(family_dir, tmp_path):
    """Copy a family's folder, with some config entries changed."""

    def make(family: str = "gpt2", **entries: Any) -> Path:
        folder = tmp_path / f"variant-{family}"
        shutil.copytree(family_dir(family), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **entries}))
        return folder

    return make


@pytest.fixture
def no_hub(monkeypatch):
    """Make a request fail at once instead of after the hub client's retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# ------------------------------------------------------------------------------------------------ what is loaded


@each_kind
@each_family
def test_logits_equal_hugging_face(tiny, family_dir, family, kind):
    model = tiny(family, kind)
    # Long enough for the sliding windows to matter.
    tokens = torch.randint(0, model.cfg.d_vocab, (2, N_CTX), generator=torch.Generator().manual_seed(0))
    expected = hugging_face_logits(family_dir(family), tokens)
    assert relative_error(model(tokens), expected) < 2e-5
    assert expected.std() > 1, "the fixture's logits are flat, so this test would see little"


@each_kind
@each_family
def test_model_is_frozen_in_eval_mode_and_named(tiny, family, kind):
    model = tiny(family, kind)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.cfg.model_name == f"tiny-{family}"
    assert model.tokenizer.padding_side == "right"
    assert model.tokenizer.pad_token_id is not None
    assert type(model).__name__ == {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}[kind]


@each_kind
@each_family
def test_bos_policy_is_the_tokenizers_own(tiny, family, kind):
    model = tiny(family, kind)
    bos = family in ADDS_BOS
    assert model.cfg.default_prepend_bos is bos
    paris = model.tokenizer("Paris", add_special_tokens=False)["input_ids"]
    assert model.to_tokens("Paris").tolist() == [[model.tokenizer.bos_token_id] * bos + paris]
    assert "add_bos_token" not in model.tokenizer.init_kwargs, "the tokenizer would be saved with another default"


@each_kind
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_bos_policy_can_be_set(fresh_tiny, family, kind, prepend_bos):
    model = fresh_tiny(family, kind, prepend_bos=prepend_bos)
    assert model.cfg.default_prepend_bos is prepend_bos
    tokens = model.to_tokens("Paris")[0].tolist()
    assert (tokens[0] == model.tokenizer.bos_token_id) is prepend_bos
    assert len(tokens) == 1 + prepend_bos


@each_kind
@each_family
def test_reduced_precision_loads(tiny, family_dir, family, kind):
    model = tiny(family, kind, torch.bfloat16)
    assert model.cfg.dtype == torch.bfloat16
    assert model.blocks[1].mlp.W_out.dtype == torch.bfloat16
    tokens = torch.arange(2, 12)[None]
    assert relative_error(model(tokens), hugging_face_logits(family_dir(family), tokens)) < 0.3


@each_kind
def test_double_precision_keeps_every_bit_of_the_weights(fresh_tiny, variant, kind):
    folder = variant("llama")
    weights = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}
    exact = weights["model.layers.1.mlp.down_proj.weight"] + 1e-12
    save_file({**weights, "model.layers.1.mlp.down_proj.weight": exact}, folder / "model.safetensors", {"format": "pt"})
    model = load_model(str(folder), model_class=kind, dtype=torch.float64, progress=False)
    assert torch.equal(model.blocks[1].mlp.W_out, exact.T)


def test_default_kind_is_hooked_transformer_where_there_is_one(family_dir):
    model = load_model(str(family_dir("gpt2")), device="cpu", progress=False)
    assert type(model).__name__ == ("HookedTransformer" if "hooked" in KINDS else "TransformerBridge")


@each_kind
def test_loading_leaves_global_state_alone(family_dir, kind):
    from transformers.utils import logging as transformers_logging

    def state() -> list[Any]:
        logger = logging.getLogger("transformers")
        bars = transformers_logging.is_progress_bar_enabled()
        root = logging.getLogger()
        return [torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_dtype(), list(root.handlers),
                logger.level, transformers_logging.get_verbosity(), bars, list(warnings.filters)]  # fmt: skip

    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_progress_bar()
    before = state()
    load_model(str(family_dir("gpt2")), model_class=kind, progress=False)
    with pytest.raises(ModelUnavailableError):
        load_model("./nowhere", model_class=kind, progress=False)
    assert state() == before


@each_kind
def test_local_folder_needs_no_network(family_dir, kind, monkeypatch):
    attempts = []  # kept, since the hub client would swallow an exception

    def refuse(*args: Any, **kwargs: Any) -> None:
        attempts.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(str(family_dir("gemma2")), model_class=kind, progress=False)
    assert not attempts


def test_hub_names_come_from_the_hub_cache_without_a_sound(family_dir, tmp_path):
    """In a process of its own: the cache's place and the offline switch are read when the hub client is imported."""
    repository = tmp_path / "hub" / "models--someone--tiny-gptj"
    shutil.copytree(family_dir("gptj"), repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    script = """
        import sys
        from pathlib import Path
        from tl_rome.models.loading import load_model
        assert not {"transformers", "transformer_lens"} & set(sys.modules), "importing tl_rome.models is not light"
        for options in ({}, {"cache_dir": Path(sys.argv[1])}):
            model = load_model("someone/tiny-gptj", progress=False, **options)
        print(model.cfg.model_name, model.cfg.n_layers, model.cfg.default_prepend_bos)
    """
    # -c puts the working directory on the path, so that an uninstalled checkout works too.
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "hub")],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tiny-gptj", "4", "False"]
    assert done.stderr == ""


@each_kind
def test_embedded_model_knows_its_facts(smollm2, kind):
    model = smollm2(kind)
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp, model.cfg.n_ctx) == (30, 576, 1536, 8192)
    assert model.cfg.default_prepend_bos is False
    probs = model(model.to_tokens("The Eiffel Tower is located in the city of"))[0, -1].softmax(-1)
    assert model.tokenizer.decode(probs.argmax()) == " Paris"
    assert math.isclose(probs.max(), 0.7015, abs_tol=1e-3)


@pytest.mark.skipif("hooked" not in KINDS, reason="one class only")
def test_embedded_model_is_the_same_in_both_classes(smollm2):
    tokens = smollm2("bridge").to_tokens("Paris is the capital of France, and Rome is the capital of")
    assert relative_error(smollm2("hooked")(tokens), smollm2("bridge")(tokens)) < 1e-5


# ------------------------------------------------------------------------------------------------ what is refused


def test_unknown_name_suggests_known_ones(no_hub):
    with pytest.raises(
        ModelUnavailableError, match=r"no model 'gpt2-xxl'.*not a local folder.*'gpt2-xl'.*smollm2-135m"
    ):
        load_model("gpt2-xxl", progress=False)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/no such folder"])
def test_missing_folder_is_not_looked_up_on_the_hub(name):
    with pytest.raises(ModelUnavailableError, match="does not exist"):
        load_model(name, progress=False)


def test_folder_without_config(tmp_path):
    with pytest.raises(ModelUnavailableError, match=r"has no config\.json"):
        load_model(str(tmp_path), progress=False)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_folder_without_a_needed_file(variant, file):
    folder = variant()
    (folder / file).unlink()
    with pytest.raises(ModelUnavailableError, match="cannot read the model in"):
        load_model(str(folder), progress=False)


def test_truncated_weights(variant):
    weights = variant() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelUnavailableError, match="damaged or incomplete"):
        load_model(str(weights.parent), progress=False)


def test_weights_that_the_config_asks_for_and_the_file_lacks(variant):
    with pytest.raises(ModelUnavailableError, match=r"lack \d+ tensors.*h\.4\."):
        load_model(str(variant(n_layer=5)), progress=False)


@each_kind
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(variant, kind, value):
    folder = variant("qwen2")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericsError, match=r"'model\.layers\.2\.mlp\.down_proj\.weight' .* has 1 NaN or infinite"):
        load_model(str(folder), model_class=kind, progress=False)


def test_model_type_that_transformers_does_not_know(variant):
    with pytest.raises(UnsupportedModelError, match=r"cannot load .* model type `no_such_type`"):
        load_model(str(variant(model_type="no_such_type")), progress=False)


def test_model_that_is_no_language_model(variant):
    with pytest.raises(UnsupportedModelError, match="is a vit model"):
        load_model(str(variant(model_type="vit")), progress=False)


def test_models_of_text_and_images_are_refused_before_transformer_lens_sees_them(variant, monkeypatch):
    def forbidden(*_args, **_options):
        pytest.fail("TransformerLens was asked to convert it")

    monkeypatch.setattr("tl_rome.models.conversion.convert", forbidden)
    folder = variant("llama")
    config = {"model_type": "gemma3", "text_config": {"hidden_size": 32}, "vision_config": {"hidden_size": 32}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="gemma3 model of text and something else"):
        load_model(str(folder), progress=False)


def test_models_that_look_ahead_are_refused(family_dir, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertLMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(family_dir("gpt2"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="BertLMHeadModel predicts a token from what follows"):
        load_model(str(tmp_path), model_class="bridge", progress=False)


def test_a_model_without_a_final_norm_is_refused_when_it_is_loaded(family_dir, tmp_path):
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(family_dir("gpt2"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 128}
    config = OPTConfig(vocab_size=len(tokenizer), **sizes, word_embed_proj_dim=16, do_layer_norm_before=False)
    OPTForCausalLM(config).save_pretrained(tmp_path)  # as OPT-350m is
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="has no final norm"):
        load_model(str(tmp_path), model_class="bridge", progress=False)


def test_a_model_of_other_blocks_is_refused_when_it_is_loaded(family_dir, tmp_path):
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(family_dir("gpt2"))
    MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"MambaForCausalLM\) have neither attention nor an MLP"):
        load_model(str(tmp_path), model_class="bridge", progress=False)


def biased_llama(folder: Path) -> Path:
    """Give a Llama biases: a layout that transformers runs and HookedTransformer's converter silently drops."""
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, value in list(weights.items()):
        if "_proj" in name:
            weights[name.replace("weight", "bias")] = torch.randn(value.shape[0], generator=generator)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.skipif("hooked" not in KINDS, reason="no HookedTransformer in TransformerLens 4")
def test_conversion_to_another_model_is_refused(variant):
    folder = biased_llama(variant("llama", attention_bias=True, mlp_bias=True))
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*other logits.*try model_class='bridge'"):
        load_model(str(folder), model_class="hooked", progress=False)


def test_bridge_keeps_what_hooked_transformer_would_drop(variant):
    folder = biased_llama(variant("llama", attention_bias=True, mlp_bias=True))
    model = load_model(str(folder), model_class="bridge", progress=False)
    tokens = torch.arange(20)[None]
    assert relative_error(model(tokens), hugging_face_logits(folder, tokens)) < 1e-5


@pytest.mark.skipif("hooked" not in KINDS, reason="no HookedTransformer in TransformerLens 4")
def test_architecture_that_transformer_lens_cannot_convert(variant):
    folder = variant("gpt2", n_inner=64)  # HookedTransformer takes it for granted that d_mlp is four times d_model
    weights = load_file(folder / "model.safetensors")
    for name in list(weights):
        if ".mlp.c_fc" in name:
            weights[name] = weights[name][..., :64].clone()
        elif ".mlp.c_proj.weight" in name:
            weights[name] = weights[name][:64].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UnsupportedModelError, match=r"cannot convert .*GPT2LMHeadModel.*size mismatch.*model_class='bridge'"
    ):
        load_model(str(folder), model_class="hooked", progress=False)


@pytest.mark.skipif("hooked" not in KINDS, reason="no HookedTransformer in TransformerLens 4")
def test_temporary_folder_with_a_model_in_its_name(family_dir, tmp_path, monkeypatch):
    (tmp_path / "llama").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "llama"))
    with pytest.raises(UnsupportedModelError, match="TMPDIR"):
        load_model(str(family_dir("gpt2")), model_class="hooked", progress=False)


def test_hooked_transformer_that_is_not_there(family_dir, monkeypatch):
    if "hooked" in KINDS:
        monkeypatch.setattr("tl_rome.models.conversion.has_hooked_transformer", lambda: False)
    with pytest.raises(UnsupportedModelError, match=r"removed in 4\.0.*model_class='bridge'"):
        load_model(str(family_dir("gpt2")), model_class="hooked", progress=False)
    model = load_model(str(family_dir("gpt2")), progress=False)
    assert type(model).__name__ == "TransformerBridge"


def test_bos_asked_of_a_tokenizer_without_one(variant):
    folder = variant()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="has no BOS token"):
        load_model(str(folder), prepend_bos=True, progress=False)
    assert load_model(str(folder), progress=False).cfg.default_prepend_bos is False


def test_arguments_that_make_no_sense(family_dir):
    with pytest.raises(InputError, match="empty"):
        load_model(" ", progress=False)
    with pytest.raises(InputError, match=r"torch\.int64"):
        load_model(str(family_dir("gpt2")), dtype=torch.int64, progress=False)


@pytest.mark.parametrize("device", ["banana", "cuda:99", "ipu", "hpu"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device):
    with pytest.raises(InputError, match=rf"device '{device}' cannot be used .*; this machine has cpu"):
        load_model("./nowhere", device=device, progress=False)
