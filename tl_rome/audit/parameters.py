"""Which weights two models have in common, and whether they may be compared at all.

Matrices of MLPs are compared as edits know them (`MlpMatrix`), everything else parameter by parameter. Weights that
were processed on loading (norms folded, outputs centred) differ from raw ones everywhere and mean the same, so that
models of which only one was processed are refused.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import ModelMismatchError
from tl_rome.running.matrices import MlpMatrix, editable_matrices, w_out
from tl_rome.sites import HookedModel, is_hooked_transformer

_SHAPE = ("original_architecture", "n_layers", "d_model", "d_mlp", "n_heads", "n_key_value_heads", "d_head", "d_vocab")
_SETTINGS = ("act_fn", "eps", "positional_embedding_type", "rotary_dim", "gated_mlp", "dtype")
_CENTRED = 1e-4
"""Mean of a row over the root mean square of all, below which it is centred; rounding in float32 leaves less."""

Pair = tuple[str, MlpMatrix | None, Tensor, Tensor]
"""Name, matrix of an MLP if it is one, and the weight in both models."""


def check_comparable(first: HookedModel, second: HookedModel) -> None:
    """Refuse two models whose weights, or answers to a prompt, are not of the same kind.

    Raises:
        ModelMismatchError: If class, architecture, shape, dtype, weight processing, tokenizer or BOS policy differ.
        UnsupportedModelError: If one is neither a HookedTransformer nor a TransformerBridge.
    """
    if is_hooked_transformer(first) != is_hooked_transformer(second):
        raise ModelMismatchError(
            "one model is a HookedTransformer and the other a TransformerBridge, whose weights have other names; "
            "load both with the same model_class"
        )
    for name in (*_SHAPE, *_SETTINGS):
        values = [getattr(model.cfg, name, None) for model in (first, second)]
        if values[0] != values[1]:
            raise ModelMismatchError(
                f"the models cannot be compared weight by weight: {name} is {values[0]} in one and {values[1]} in the "
                "other; compare two versions of one checkpoint, loaded in the same way"
            )
    processed = [_processing(model) for model in (first, second)]
    if processed[0] != processed[1]:
        raise ModelMismatchError(
            f"the weights of the models were not processed alike on loading ({processed[0]}; {processed[1]}); load "
            "both with tl_rome.load_model, which leaves them raw"
        )
    _check_texts(first, second)


def _check_texts(first: HookedModel, second: HookedModel) -> None:
    """Refuse models that read a prompt as different tokens."""
    vocabularies = [None if model.tokenizer is None else model.tokenizer.get_vocab() for model in (first, second)]
    if vocabularies[0] != vocabularies[1]:
        raise ModelMismatchError("the models have different tokenizers; compare two versions of one checkpoint")
    policies = [bool(model.cfg.default_prepend_bos) for model in (first, second)]
    if policies[0] != policies[1]:
        raise ModelMismatchError("prompts begin with BOS in one model only; load both with the same prepend_bos")


def _processing(model: HookedModel) -> str:
    """What was done to the weights, in words, as far as it can be seen."""
    norm = "norms folded" if str(getattr(model.cfg, "normalization_type", "")).endswith("Pre") else "norms as they are"
    weight = w_out(model, 0).detach().float()
    centred = weight.mean(dim=1).abs().max() < _CENTRED * weight.square().mean().sqrt()
    return f"{norm}, outputs {'centred' if centred else 'not centred'}"


def weight_pairs(first: HookedModel, second: HookedModel) -> Iterator[Pair]:
    """All weights of two models that `check_comparable` accepts: MLPs' matrices first, then all other parameters.

    Raises:
        ModelMismatchError: If one has a parameter that the other lacks, or in another shape.
    """
    matrices = [editable_matrices(model) for model in (first, second)]
    for place, weight in matrices[0].items():
        yield str(place), place, weight.detach(), matrices[1][place].detach()
    others = [_others(model, known) for model, known in zip((first, second), matrices, strict=True)]
    if different := sorted(others[0].keys() ^ others[1].keys()):
        raise ModelMismatchError(f"only one of the models has a parameter {different[0]!r}; compare like with like")
    for name, weight in others[0].items():
        if weight.shape != others[1][name].shape:
            raise ModelMismatchError(
                f"{name} has shape {tuple(weight.shape)} in one model and {tuple(others[1][name].shape)} in the other"
            )
        yield name, None, weight, others[1][name]


def _others(model: Any, matrices: dict[MlpMatrix, Tensor]) -> dict[str, Tensor]:
    """Parameters that are no matrices of MLPs, by name; a bridge's without what it puts between the parts of a name."""
    known = {weight.untyped_storage().data_ptr() for weight in matrices.values()}
    return {
        name.replace("_original_component.", ""): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.untyped_storage().data_ptr() not in known
    }


def as_matrix(name: str, weight: Tensor) -> Float[Tensor, "rows columns"]:
    """A weight as one matrix: heads of HookedTransformer's attention side by side, a vector as a row."""
    if weight.ndim == 3 and not name.endswith("W_O"):
        weight = weight.permute(1, 0, 2).flatten(1)
    elif weight.ndim == 3:
        weight = weight.flatten(0, 1)
    return weight if weight.ndim == 2 else torch.atleast_2d(weight.flatten())
