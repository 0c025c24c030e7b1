"""Editors by name: the presets they name, one covariance, and one optimisation where only keys differ."""

from dataclasses import replace
from typing import Any

import pytest
from support.families import KINDS, SENTENCES
from support.training import trained

from tl_rome.counterfact import EDITOR_NAMES, editors_by_name
from tl_rome.editors import (
    FT,
    FT_L,
    KN,
    KN_CORRECTED,
    MASS_PRESETS,
    NEURIPS,
    PRESETS,
    R_ROME,
    FineTune,
    KnowledgeNeurons,
    Rome,
    TrainingLog,
    Validation,
)
from tl_rome.editors.by_name import ROME_CONFIGS, TRAINED_NAMES, editor_by_name
from tl_rome.editors.covariance.estimation import estimate_covariance
from tl_rome.editors.identity import describe_editor, editor_name
from tl_rome.editors.rank_one import value as value_module
from tl_rome.errors import InputError, ModelMismatchError
from tl_rome.facts import EditRequest

KIND = KINDS[0]
UNTRAINED = tuple(name for name in EDITOR_NAMES if name not in TRAINED_NAMES)
REQUEST = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome", "Paris")


def named(*arguments: Any, **options: Any) -> Any:
    """The editors by name, of whatever class."""
    return editors_by_name(*arguments, **options)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("llama", KIND)


@pytest.fixture(scope="module")
def covariance(model):
    return estimate_covariance(model, 1, SENTENCES, source="sentences", progress=False)


def test_every_name_gives_the_editor_of_its_preset_and_order_is_kept(model, covariance):
    names = UNTRAINED[::-1]
    found = named(model, names, covariance=covariance, covariances={1: covariance})
    assert tuple(found) == names
    assert (found["ft"].config, found["ft_l"].config, found["ft"].layer) == (FT, FT_L, 0)
    presets = {"rome" if name == "released" else name: config for name, config in PRESETS.items()}
    assert {*EDITOR_NAMES} == {"ft", "ft_l", "kn", "kn_corrected", *presets, *TRAINED_NAMES, *MASS_PRESETS}
    assert {name: found[name].config for name in MASS_PRESETS} == MASS_PRESETS
    assert len({found[name].find_values for name in MASS_PRESETS}) == 1
    assert (found["kn"].config, found["kn_corrected"].config) == (KN, KN_CORRECTED)
    assert {name: found[name].config for name in presets} == presets
    assert all(found[name].covariance is covariance for name in presets)
    assert len({found[name].find_values for name in presets}) == 1
    assert editor_name(found["rome"]) == "rome"
    assert editor_name(found["ft_l"]) == "ft_l"


@pytest.mark.parametrize("name", UNTRAINED)
def test_an_editor_made_alone_equals_the_one_made_with_others(model, covariance, name):
    given = {"covariance": covariance if name in ROME_CONFIGS else None}
    given["covariances"] = {1: covariance} if name in MASS_PRESETS else None
    alone = editor_by_name(model, name, **given, seed=3, progress=False)
    both = {"covariance": covariance, "covariances": {1: covariance}}
    many = named(model, UNTRAINED, **both, seed=3, progress=False)[name]
    assert describe_editor(alone) == describe_editor(many)
    assert editor_name(alone) == editor_name(many)
    if not isinstance(alone, KnowledgeNeurons):
        assert alone.layer_choice == many.layer_choice


def test_an_editor_by_name_takes_a_layer_and_only_what_it_uses(model, covariance):
    tuned = editor_by_name(model, "ft_l", layer=2)
    assert isinstance(tuned, FineTune)
    assert (tuned.layer, tuned.layer_choice) == (2, "given")
    with pytest.raises(InputError, match="'ft' reads the prompt alone; leave out covariance and contexts"):
        editor_by_name(model, "ft", covariance=covariance)
    with pytest.raises(InputError, match="'kn' finds its own layers; leave out layer"):
        editor_by_name(model, "kn", layer=1)
    with pytest.raises(InputError, match="layer 9 is out of range"):
        editor_by_name(model, "ft", layer=9)
    with pytest.raises(InputError, match="no editor 'memoir'"):
        editor_by_name(model, "memoir")
    with pytest.raises(InputError, match="'memit' edits several layers with statistics of each"):
        editor_by_name(model, "memit", covariance=covariance)
    with pytest.raises(InputError, match="'rome' takes no statistics of several layers"):
        editor_by_name(model, "rome", covariances={1: covariance})


def test_contexts_follow_the_recipe_of_the_preset(model, covariance):
    found = named(model, ("rome", "r_rome", "draft", "neurips"), covariance=covariance, seed=3)
    assert found["rome"].contexts == found["r_rome"].contexts
    assert found["draft"].contexts == ("",)
    alone = Rome.prepare(model, covariance=covariance, config=NEURIPS, seed=3)
    assert found["neurips"].contexts == alone.contexts
    assert found["neurips"].contexts_choice == alone.contexts_choice
    given = named(model, ("draft", "neurips"), covariance=covariance, contexts=("", "He said. "))
    assert {editor.contexts for editor in given.values()} == {("", "He said. ")}


def test_v_is_optimised_once_for_presets_that_differ_in_keys(model, covariance, monkeypatch):
    asked, make = [], value_module.Rewrite.make
    monkeypatch.setattr(value_module.Rewrite, "make", lambda *args: (asked.append(args[1]), make(*args))[1])
    found = named(model, ("rome", "r_rome", "p_rome"), covariance=covariance)
    edits = {name: editor(model, REQUEST) for name, editor in found.items()}
    assert len(asked) == 1
    alone = replace(Rome.prepare(model, covariance=covariance), config=R_ROME)(model, REQUEST)
    assert edits["r_rome"].updates[0].delta.equal(alone.updates[0].delta)
    assert not edits["rome"].updates[0].delta.equal(alone.updates[0].delta)


def test_fine_tuning_alone_needs_no_key_statistics(model, monkeypatch):
    monkeypatch.setattr(Rome, "prepare", None)
    assert list(named(model, ("ft_l", "ft_l", "ft"))) == ["ft_l", "ft"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("rome", "memoir"),
            "no editor 'memoir'; choose from ft, ft_l, kn, kn_corrected, ke, ke_cf, mend, mend_cf, rome, r_rome",
        ),
        ((), "no editor was named; choose"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(model, names, message):
    with pytest.raises(InputError, match=message):
        named(model, names)


def test_fewer_contexts_keep_the_empty_one_and_all_lengths(model, covariance):
    names, given = ("rome", "draft", "ft"), {"covariance": covariance, "contexts": "recipe"}
    every = named(model, names, **given)
    few = named(model, names, **given, max_contexts=5)
    empty, *others = every["rome"].contexts
    assert few["rome"].contexts == (empty, *others[::5])
    assert few["rome"].contexts_choice.startswith("5 of 21, ")
    assert few["draft"].contexts == ("",)
    assert named(model, ["rome"], covariance=covariance, max_contexts=1)["rome"].contexts == ("",)
    with pytest.raises(InputError, match="max_contexts is 0"):
        named(model, ["rome"], covariance=covariance, max_contexts=0)


def test_trained_editors_are_given_and_doubtful_ones_named_so(model, tiny):
    doubtful = trained(model, progress=False)
    (label,) = named(model, ["mend_cf"], trained=[doubtful])
    assert label == "mend_cf (not converged)"
    first = Validation(0, 4.0, 0.0, 0.0, 0.4)
    log = TrainingLog(100, 0, 0, "", (first, Validation(25, 1.0, 0.0, 1.0, 0.1)), {})
    sound = replace(doubtful, log=replace(log, best_step=25, steps=200))
    assert named(model, ["ft", "mend_cf"], trained=[sound])["mend_cf"] is sound
    with pytest.raises(InputError, match=r"'mend' is trained first, by `tl-rome train mend --out FILE`; give what"):
        named(model, ["mend"], trained=[sound])
    with pytest.raises(InputError, match=r"'ke_cf' is trained first"):
        editor_by_name(model, "ke_cf")
    with pytest.raises(ModelMismatchError, match="this mend_cf editor belongs to the model"):
        named(tiny("gpt2", KIND), ["mend_cf"], trained=[sound])
