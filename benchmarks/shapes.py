"""Models with random weights in the shapes of known ones, and small ones of the same kinds."""

from typing import Any

import torch

import tl_rome
from tl_rome.models.conversion import convert

_GPT2 = {"bos_token_id": 0, "eos_token_id": 0}
_GPTJ = {**_GPT2, "n_positions": 2048}
_SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rope_theta": 100_000.0,
    "max_position_embeddings": 8192,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-xl": ("GPT2", {**_GPT2, "n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "gpt-j": ("GPTJ", {**_GPTJ, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64}),
    "smollm2": ("Llama", {**_SMOLLM2, "num_hidden_layers": 30}),
    "gpt2-small": ("GPT2", {**_GPT2, "n_embd": 32, "n_layer": 4, "n_head": 4}),
    "gpt-j-small": ("GPTJ", {**_GPTJ, "n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 8}),
}
"""Kind of model and its configuration, by name."""
_DRAWN = 1_048_573
"""Numbers that weights are made of; a prime, so that no two rows of a weight are alike."""


def random_model(name: str, model_class: Any, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Any:
    """A model in a shape, the same one at every call, with the tokenizer of SmolLM2."""
    import transformers
    from transformers.initialization import no_init_weights

    kind, settings = SHAPES[name]
    config = getattr(transformers, f"{kind}Config")(**settings, dtype=dtype, attn_implementation="eager")
    with no_init_weights():  # which takes minutes for billions of weights
        model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
    model = model.to(dtype)
    _fill(model)
    converted: Any = convert(model.eval(), tokenizer(), f"{name}-random", model_class)
    if torch.device(device).type != "cpu":
        converted = converted.to(device, print_details=False)
    for parameter in converted.parameters():
        parameter.requires_grad_(False)
    return converted


def tokenizer() -> Any:
    """That of SmolLM2."""
    return tl_rome.load_model("smollm2-135m", model_class="bridge", progress=False).tokenizer


@torch.no_grad()
def _fill(model: Any) -> None:
    drawn = torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0)) * 0.02
    for place, (name, parameter) in enumerate(model.named_parameters()):
        shifted = drawn.roll(place * 1009).to(parameter.dtype)
        filled = shifted.repeat(-(-parameter.numel() // _DRAWN))[: parameter.numel()].view_as(parameter)
        norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + filled if norm else filled)
