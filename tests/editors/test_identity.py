"""What decides an edit is in its editor's hash, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import edits as material
from support.families import KINDS

from tl_rome.editors import DRAFT, FT, FT_L, R_ROME, RELEASED, FineTune, KeyCovariance, Rome, SharedValues
from tl_rome.editors.identity import describe_editor, editor_name, settings_hash


def covariance(scale=1.0, layer=1):
    return KeyCovariance(scale * torch.eye(4, dtype=torch.float64), layer, 10, "test", False, "m")


def editor_hash(editor):
    return settings_hash(describe_editor(editor))


ROME = Rome(covariance(), ("", "He said. "))


@pytest.mark.parametrize(
    "change",
    [
        {"covariance": covariance(2.0)},
        {"covariance": covariance(layer=2)},
        {"contexts": ("", "She said. ")},
        {"config": replace(RELEASED, clamp=3.0)},
        {"config": R_ROME},
    ],
)
def test_what_decides_the_edits_of_rome_counts(change):
    assert editor_hash(replace(ROME, **change)) != editor_hash(ROME)
    assert editor_hash(Rome(covariance(), ("", "He said. "))) == editor_hash(ROME)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_choice": "because"},
        {"contexts_choice": "sampled somehow"},
        {"find_values": SharedValues()},
        {"seed": 1},
        {"config": replace(RELEASED, preset="mine")},
        {"config": replace(RELEASED, context_lengths=(), context_openings=("The",))},
        {"covariance": replace(covariance(), source="another description")},
    ],
)
def test_what_does_not_decide_the_edits_of_rome_does_not_count(change):
    assert editor_hash(replace(ROME, **change)) == editor_hash(ROME)


def test_a_given_layer_and_a_chosen_one_give_the_same_editor(tiny):
    model = tiny("llama", KINDS[0])
    statistics = material.covariance(model)
    options = {"covariance": statistics, "contexts": material.CONTEXTS, "progress": False}
    said, chosen = Rome.prepare(model, layer=1, **options), Rome.prepare(model, **options)
    assert said.layer_choice != chosen.layer_choice
    assert editor_hash(said) == editor_hash(chosen)


def test_the_class_of_an_editor_and_those_inside_it_count():
    class Other(Rome):
        pass

    assert editor_hash(Other(ROME.covariance, ROME.contexts)) != editor_hash(ROME)
    held = [SimpleNamespace(config={"inner": editor}) for editor in (ROME, replace(ROME, seed=1), FineTune())]
    assert editor_hash(held[0]) == editor_hash(held[1]) != editor_hash(held[2])


def test_layer_and_config_of_fine_tuning_count():
    editors = [FineTune(), FineTune(layer=1), FineTune(config=FT_L), FineTune(config=replace(FT, max_steps=24))]
    assert len({editor_hash(editor) for editor in editors}) == len(editors)
    assert editor_hash(FineTune(layer_choice="because")) == editor_hash(FineTune())


def other(model, request):
    return None


def test_other_editors_are_known_by_name_and_config():
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
