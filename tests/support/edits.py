"""What the editor tests share: a request that tiny tokenizers know, contexts, and a covariance from plain sentences."""

from typing import Any

import torch

from support.families import SENTENCES
from tl_rome.editors import Edit, KeyCovariance, LowRankUpdate, Rome
from tl_rome.editors.covariance.estimation import estimate_covariance
from tl_rome.facts import EditRequest

REQUEST = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome", "Paris")
CONTEXTS = ("", "He said that. ", "In the morning people. ")
LAYER = 1


def covariance(model: Any, layer: int = LAYER) -> KeyCovariance:
    """Key statistics of a tiny model; 61 sentences hold enough tokens for its d_mlp."""
    return estimate_covariance(model, layer, SENTENCES, source="test sentences", progress=False)


def editor(model: Any, layer: int = LAYER) -> Any:
    """A `Rome` that samples nothing."""
    return Rome(covariance(model, layer), CONTEXTS)


def rank_one(edit: Edit) -> LowRankUpdate:
    """The first update of an edit."""
    update = edit.updates[0]
    assert isinstance(update, LowRankUpdate)
    return update


def random_edit(edit, layer, seed):
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(len(x), generator=generator) for x in (edit.updates[0].left[:, 0], edit.updates[0].right[:, 0]))
    return Edit((LowRankUpdate.rank_one(layer, u, v),), edit.request, edit.receipt, edit.model, {})
