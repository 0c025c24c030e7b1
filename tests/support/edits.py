"""What the editor tests share: a request that tiny tokenizers know, contexts, and a covariance from plain sentences."""

from typing import Any

import torch

from support.families import SENTENCES
from tl_rome.editors import Edit, KeyCovariance, RankOneUpdate, Rome
from tl_rome.editors.covariance.estimation import estimate_covariance
from tl_rome.facts import EditRequest

REQUEST = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome", "Paris")
CONTEXTS = ("", "He said that. ", "In the morning people. ")
LAYER = 1


def covariance(model: Any, layer: int = LAYER) -> KeyCovariance:
    """Key statistics of a tiny model; 61 sentences hold enough tokens for its d_mlp."""
    return estimate_covariance(model, layer, SENTENCES, source="test sentences", progress=False)


def editor(model: Any, layer: int = LAYER) -> Rome:
    """An editor that samples nothing."""
    return Rome(covariance(model, layer), CONTEXTS)


def booted(folder: Any, *, training: bool = False) -> Any:
    """A bridge as a user makes it of a Hugging Face model in train mode, or in eval mode."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train(training)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TransformerBridge.boot_transformers("owner/name", hf_model=hf, tokenizer=tokenizer, device="cpu")
    model.cfg.default_prepend_bos = False
    return model


def random_edit(edit, layer, seed):
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(len(x), generator=generator) for x in (edit.updates[0].u, edit.updates[0].v))
    return Edit((RankOneUpdate(layer, u, v),), edit.request, edit.receipt, edit.model, {})
