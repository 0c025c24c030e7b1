"""Layouts that are certified one by one, see `test_families.py`; tests of everything else take those of `families`."""

from collections.abc import Callable
from typing import Any

from support.families import D_MODEL, N_CTX, N_HEADS, N_LAYERS

_SIZES = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS}
_COMMON = {**_SIZES, "max_position_embeddings": N_CTX}
_GATED = {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2}
_EXPERTS = {**_GATED, "num_experts_per_tok": 2}


def _config(name: str, entries: dict[str, Any], **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**entries, **more)

    return make


_MULTIPLIERS = {"residual_multiplier": 0.22, "embedding_multiplier": 3.0, "attention_multiplier": 0.1}
_BLOOM = {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS}
_NEO = {"hidden_size": D_MODEL, "num_layers": N_LAYERS, "num_heads": N_HEADS, "max_position_embeddings": N_CTX}

DENSE = {
    "qwen3": _config("Qwen3Config", _GATED, head_dim=8),
    "gemma3": _config("Gemma3TextConfig", _GATED, head_dim=8, sliding_window=64, query_pre_attn_scalar=8),
    "olmo2": _config("Olmo2Config", _GATED),
    "olmo3": _config("Olmo3Config", _GATED, sliding_window=64),
    "phi3": _config("Phi3Config", _GATED),
    "granite": _config("GraniteConfig", _GATED, logits_scaling=4.0, **_MULTIPLIERS),
    "opt": _config("OPTConfig", _COMMON, ffn_dim=128, word_embed_proj_dim=D_MODEL),
    "bloom": _config("BloomConfig", _BLOOM, max_position_embeddings=N_CTX),
    "falcon": _config("FalconConfig", _COMMON),
    "stablelm": _config("StableLmConfig", _GATED),
    "smollm3": _config("SmolLM3Config", _GATED),
    "gptneo": _config("GPTNeoConfig", _NEO, intermediate_size=128, attention_types=[[["global", "local"], 2]]),
}
"""Families with one MLP in a layer, which can be edited."""

EXPERTS = {
    "mixtral": _config("MixtralConfig", _EXPERTS, num_local_experts=4),
    "qwen3_moe": _config("Qwen3MoeConfig", _EXPERTS, head_dim=8, moe_intermediate_size=16, num_experts=4),
    "gpt_oss": _config("GptOssConfig", _EXPERTS, head_dim=8, num_local_experts=4),
}
"""Families with routed experts, which can be traced alone."""

MORE_CONFIGS = {**DENSE, **EXPERTS}
