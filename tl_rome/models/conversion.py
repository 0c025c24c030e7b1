"""A loaded Hugging Face model made into a raw TransformerLens model, without touching the network.

TransformerLens' own loaders ask the hub for configs and tokenizers by name even when the weights are loaded, and know
only names on their list. One path serves every model here: the architecture's config translation and weight converter
are used, its names are not. No weight is processed (no folding, no centring), so that a change of W_out means the same
in the HookedTransformer, the TransformerBridge and the Hugging Face model.

The result is compared with the logits of the Hugging Face model it came from: TransformerLens' converters drop what
they do not expect (a bias in a Llama, an unusual rotary embedding) without a word, and a wrong model would fail far
from here.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import ModelUnavailableError, UnsupportedModelError
from tl_rome.running.forward import check_final_logits
from tl_rome.running.interrupts import reliable
from tl_rome.sites import Site, hook_points

if TYPE_CHECKING:
    from tl_rome.sites import HookedModel

_MAX_HOOKED_CTX = 8192
"""Longest context given to a HookedTransformer: it keeps rotary tables of this length in every layer."""


def has_hooked_transformer() -> bool:
    """Tell whether the installed TransformerLens still has HookedTransformer (3.x does, 4.x does not)."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def convert(hf_model: Any, tokenizer: Any, name: str, model_class: str) -> "HookedModel":
    """Make a HookedTransformer or TransformerBridge from a Hugging Face model on the CPU, and check it against it.

    Args:
        hf_model: A causal language model in eval mode. A bridge takes it over: it must not be used afterwards.
        tokenizer: Its tokenizer; padding side and missing special tokens are filled in.
        name: What to record as `cfg.model_name`.
        model_class: `"hooked"` or `"bridge"`.

    Returns:
        The model, in the dtype and on the device of `hf_model`.

    Raises:
        UnsupportedModelError: If TransformerLens cannot convert this architecture, or converts it to other logits.
        ModelUnavailableError: If a temporary folder that this needs cannot be written.
    """
    architecture = type(hf_model).__name__
    tokens = _probe_tokens(hf_model.config.get_text_config().vocab_size)
    with torch.no_grad():
        expected = hf_model(tokens.to(hf_model.device)).logits
        _check_causal(hf_model, tokens, expected)
    # TransformerLens reloads a tokenizer by name unless it says it adds BOS; it says so only while it is taken over.
    init_kwargs = dict(tokenizer.init_kwargs)
    tokenizer.init_kwargs.update(name_or_path="", add_bos_token=True)
    try:
        model = _hooked(hf_model, tokenizer) if model_class == "hooked" else _bridge(hf_model, tokenizer, name)
    except (NotImplementedError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"TransformerLens cannot convert {name!r} ({architecture}) for model_class={model_class!r}: "
            f"{type(error).__name__}: {_one_line(error)}; {_other_class(model_class)}"
        ) from error
    finally:
        tokenizer.init_kwargs.clear()
        tokenizer.init_kwargs.update(init_kwargs)
    model.cfg.model_name = name
    model.eval()
    error = _relative_error(_logits_of(model, tokens, name, model_class), expected)
    tolerance = _tolerance(expected)
    if not error <= tolerance:
        raise UnsupportedModelError(
            f"TransformerLens converts {name!r} ({architecture}) for model_class={model_class!r} to a model with other "
            f"logits (relative error {error:.1e}, at most {tolerance:.0e} expected); {_other_class(model_class)}"
        )
    if not {Site(part, 0).hook for part in ("attn_out", "mlp_out")} & hook_points(model).keys():
        raise UnsupportedModelError(
            f"the blocks of {name!r} ({architecture}) have neither attention nor an MLP, which is what this library "
            "traces and edits"
        )
    check_final_logits(model)
    return model


@torch.no_grad()
def _logits_of(model: Any, tokens: Int[Tensor, "1 pos"], name: str, model_class: str) -> Float[Tensor, "1 pos d_vocab"]:
    """Logits of a converted model.

    Raises:
        UnsupportedModelError: If it cannot be run.
    """
    try:
        return model(tokens.to(model.cfg.device))
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"what TransformerLens makes of {name!r} for model_class={model_class!r} does not run in "
            f"{model.cfg.dtype}: {_one_line(error)}; {_other_class(model_class)}"
        ) from error


def _check_causal(hf_model: Any, tokens: Int[Tensor, "1 pos"], logits: Float[Tensor, "1 pos d_vocab"]) -> None:
    """Make sure that what is read later does not change what was predicted before, as it does in BERT-like models.

    Raises:
        UnsupportedModelError: If it does.
    """
    other = tokens.clone()
    other[0, -1] = other[0, 0]
    found = hf_model(other.to(hf_model.device)).logits
    if not _relative_error(found[:, :-1], logits[:, :-1]) <= _tolerance(logits):
        raise UnsupportedModelError(
            f"{type(hf_model).__name__} predicts a token from what follows it too; use a model that continues text "
            "from left to right"
        )


def _tolerance(logits: Float[Tensor, "1 pos d_vocab"]) -> float:
    """Relative error of logits that rounding may cause in their type."""
    return 1e-3 if logits.dtype in (torch.float32, torch.float64) else 0.1


def _bridge(hf_model: Any, tokenizer: Any, name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    # A name in a namespace of its own, since a bare one may be an alias that is replaced with a warning. device= must
    # be given: its default is whatever accelerator there is, not where this model lives.
    return TransformerBridge.boot_transformers(
        f"tl_rome/{name}", hf_model=hf_model, tokenizer=tokenizer, dtype=hf_model.dtype, device=hf_model.device
    )


def _hooked(hf_model: Any, tokenizer: Any) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained

    hf_config = hf_model.config.to_dict()
    hf_config["architectures"] = [type(hf_model).__name__]
    hf_config.setdefault("n_ctx", hf_config.get("n_positions"))  # GPT-2: no longer written by transformers 5
    with _described(hf_config) as folder:
        if hf_model.config.model_type == "gemma2":
            settings = _gemma2_settings(hf_model.config)
            cfg = HookedTransformerConfig.from_dict({**settings, "device": "cpu", "dtype": hf_model.dtype})
        else:
            cfg = loading_from_pretrained.get_pretrained_model_config(
                folder, hf_cfg=hf_config, device="cpu", dtype=hf_model.dtype, fold_ln=False
            )
        cfg.tokenizer_name = None
        cfg.n_ctx = min(getattr(hf_model.config, "max_position_embeddings", cfg.n_ctx), _MAX_HOOKED_CTX)
        state = loading_from_pretrained.get_pretrained_state_dict(folder, cfg, hf_model, dtype=hf_model.dtype)
    model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    # Not load_and_process_state_dict: with all processing off it does this once per tensor, six seconds for 30 layers.
    model.load_state_dict(state, strict=False)
    # A bias that the architecture lacks keeps its zeros; anything else that is missing would stay uninitialised memory.
    missing = [
        key for key, _ in model.named_parameters() if key not in state and not key.split(".")[-1].startswith("b")
    ]
    if missing:
        raise ValueError(f"its converter gives no value for {', '.join(missing[:3])}")
    lay_out(model)
    return model


@reliable
def _described(hf_config: dict[str, Any]) -> Iterator[str]:
    """A temporary folder with a config, as TransformerLens reads it.

    Raises:
        ModelUnavailableError: If it cannot be made.
    """
    try:
        place = tempfile.TemporaryDirectory(prefix="tl_rome_", ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from error
    with place as folder:
        _check_neutral(folder)
        try:
            (Path(folder) / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")
        except OSError as error:
            raise _no_room(error) from error
        yield folder


def _no_room(error: OSError) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"cannot write a temporary folder, which loading a model needs: {error}; make room, or set the environment "
        "variable TMPDIR to another folder"
    )


def lay_out(model: Any) -> None:
    """Store weights transposed, in place; a HookedTransformer would otherwise copy most of them at every call.

    It multiplies by `torch.nn.functional.linear` with each weight's transpose, flattened over heads, which is a view
    only where memory lies in that order. Values, shapes and results stay the same.
    """
    orders = {"W_U": (1, 0), "W_O": (2, 0, 1), **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1))}
    if model.cfg.gated_mlp:
        orders |= dict.fromkeys(("W_in", "W_gate", "W_out"), (1, 0))
    for name, weight in model.named_parameters():
        order = orders.get(name.split(".")[-1])
        if order is not None and weight.ndim == len(order):
            back = sorted(range(len(order)), key=order.__getitem__)
            weight.data = weight.data.permute(order).contiguous().permute(back)


def _check_neutral(folder: str) -> None:
    """TransformerLens reads architectures off the whole path: a folder below `/home/llama` would become a Llama."""
    for word in ("llama", "gemma"):
        if word in folder.lower():
            raise UnsupportedModelError(
                f"the temporary folder {folder} has {word!r} in its path, which TransformerLens takes for a model "
                "name; set the environment variable TMPDIR to another folder, or use model_class='bridge'"
            )


def _gemma2_settings(config: Any) -> dict[str, Any]:
    """Translate a Gemma 2 config: TransformerLens knows this architecture by the names of three checkpoints only."""
    if config.num_hidden_layers != len(config.layer_types):
        raise ValueError(f"{config.num_hidden_layers} layers but {len(config.layer_types)} layer types")
    return {
        "original_architecture": "Gemma2ForCausalLM",
        "d_model": config.hidden_size,
        "d_head": config.head_dim,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "act_fn": config.hidden_activation,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "use_normalization_before_and_after": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": config.head_dim,
        "rotary_base": config.rope_parameters["rope_theta"],
        "use_attn_scale": True,
        "attn_scale": math.sqrt(config.query_pre_attn_scalar),
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "use_local_attn": True,
        "window_size": config.sliding_window,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in config.layer_types],
        "init_weights": False,
    }


def _probe_tokens(d_vocab: int, length: int = 8) -> Int[Tensor, "1 pos"]:
    """Return a few token ids spread over the vocabulary; they need not mean anything."""
    return (torch.arange(1, length + 1) * 7919 % d_vocab)[None]


def _relative_error(found: Float[Tensor, "1 pos d_vocab"], expected: Float[Tensor, "1 pos d_vocab"]) -> float:
    if found.shape != expected.shape:
        return math.inf
    difference = (found.float().cpu() - expected.float().cpu()).abs().max()
    return float(difference / expected.float().abs().max())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no message"


def _other_class(model_class: str) -> str:
    return "try model_class='bridge'" if model_class == "hooked" else "use a model of a supported architecture"
