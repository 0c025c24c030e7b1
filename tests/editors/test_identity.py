"""What decides an edit is in its editor's hash, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tl_rome.editors import DRAFT, FT, FT_L, R_ROME, RELEASED, FineTune, KeyCovariance, Rome
from tl_rome.editors.identity import describe_editor, editor_hash, editor_name


def covariance(scale=1.0, layer=1):
    return KeyCovariance(scale * torch.eye(4, dtype=torch.float64), layer, 10, "test", False, "m")


ROME = Rome(covariance(), ("", "He said. "))


@pytest.mark.parametrize(
    "change",
    [
        {"covariance": covariance(2.0)},
        {"covariance": covariance(layer=2)},
        {"contexts": ("", "She said. ")},
        {"config": replace(RELEASED, clamp=3.0)},
        {"config": R_ROME},
        {"seed": 1},
    ],
)
def test_every_part_of_rome_counts(change):
    assert editor_hash(replace(ROME, **change)) != editor_hash(ROME)
    assert editor_hash(Rome(covariance(), ("", "He said. "))) == editor_hash(ROME)


def test_layer_and_config_of_fine_tuning_count():
    editors = [FineTune(), FineTune(layer=1), FineTune(config=FT_L), FineTune(config=replace(FT, max_steps=24))]
    assert len({editor_hash(editor) for editor in editors}) == len(editors)


def other(model, request):
    return None


def test_others_are_known_by_name_and_config():
    one, two = (SimpleNamespace(config={"scale": torch.tensor([scale])}) for scale in (1.0, 2.0))
    assert editor_hash(one) != editor_hash(two)
    assert editor_hash(one) == editor_hash(SimpleNamespace(config={"scale": torch.tensor([1.0])}))
    assert describe_editor(other) == {"editor": "other", "config": None}


@pytest.mark.parametrize(
    ("editor", "name"),
    [
        (ROME, "rome"),
        (replace(ROME, config=R_ROME), "r_rome"),
        (replace(ROME, config=DRAFT), "rome (draft)"),
        (FineTune(), "ft"),
        (FineTune(config=FT_L), "ft_l"),
        (other, "other"),
    ],
)
def test_names_for_tables(editor, name):
    assert editor_name(editor) == name
