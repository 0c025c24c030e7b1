"""Bridges as users make them."""

from pathlib import Path
from typing import Any


def booted(folder: Path, *, training: bool = False, **settings: Any) -> Any:
    """A bridge of a Hugging Face model that is already loaded.

    Args:
        folder: The model's.
        training: Whether it is in train mode.
        settings: Of its configuration.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    hf.train(training)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TransformerBridge.boot_transformers("owner/name", hf_model=hf, tokenizer=tokenizer, device="cpu")
    model.cfg.default_prepend_bos = False
    for name, value in settings.items():
        setattr(model.original_model.config, name, value)
    return model
