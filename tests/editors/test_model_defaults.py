"""Models are known by name and shape; one that only has the shape of another gets its settings as a guess."""

from dataclasses import replace

import pytest
from support.edits import CONTEXTS, LAYER, REQUEST, covariance
from support.families import KINDS

from tl_rome.editors import (
    DRAFT,
    FT,
    FT_L,
    NEURIPS,
    P_ROME,
    R_ROME,
    R_ROME_2024,
    RELEASED,
    FineTune,
    Rome,
    default_layer,
)
from tl_rome.editors.layers import choose_layer
from tl_rome.editors.model_defaults import MODEL_DEFAULTS, ModelDefaults, find_defaults
from tl_rome.editors.rank_one.presets import with_model_defaults

KIND = KINDS[0]
MEDIUM = "a guess: the shape of gpt2-medium"


@pytest.fixture
def named(tiny, monkeypatch):
    """A model that says it has another name and shape."""

    def get(name, shape):
        model = tiny("llama", KIND)
        for setting, value in zip(("model_name", "n_layers", "d_model"), (name, *shape), strict=True):
            monkeypatch.setattr(model.cfg, setting, value)
        return model

    return get


@pytest.mark.parametrize(
    ("name", "shape", "layer", "changes", "epsilon"),
    [
        ("gpt2-xl", (48, 1600), 17, {}, 5e-4),
        ("openai-community/gpt2-large", (36, 1280), 12, {}, 5e-4),
        ("gpt2-medium", (24, 1024), 8, {"clamp": 3.0}, 5e-4),
        ("gpt-j-6B", (28, 4096), 5, {}, 5e-4),
        ("HuggingFaceTB/SmolLM2-135M", (30, 576), 5, {"extra_evaluations": 20}, 2e-3),
        ("smollm2-135m", (30, 576), 5, {"extra_evaluations": 20}, 2e-3),
    ],
)
def test_measured_models_get_their_own_settings(named, name, shape, layer, changes, epsilon):
    model = named(name, shape)
    assert choose_layer(model, None) == (layer, f"known for {name.split('/')[-1].lower()}")
    assert default_layer(model) == layer
    for config in (RELEASED, R_ROME, R_ROME_2024, P_ROME):
        assert with_model_defaults(model, config) == replace(config, **changes)
    for config in (DRAFT, NEURIPS, replace(RELEASED, clamp=5.0)):
        assert with_model_defaults(model, config) == config
    assert FineTune.prepare(model, config=FT_L).config == replace(FT_L, epsilon=epsilon)
    for config in (FT, replace(FT_L, epsilon=1e-5)):
        assert FineTune.prepare(model, config=config).config == config


def test_the_shape_of_another_model_is_a_guess(named):
    model = named("pythia-410m", (24, 1024))
    assert choose_layer(model, None) == (8, MEDIUM)
    assert with_model_defaults(model, RELEASED) == replace(RELEASED, clamp=3.0)


def test_a_name_alone_is_not_enough(named):
    model = named("gpt2-medium", (12, 768))
    assert find_defaults(model) is None
    assert choose_layer(model, None) == (3, "a quarter of the way up")
    assert with_model_defaults(model, RELEASED) == RELEASED


@pytest.mark.parametrize(("name", "guess"), [("llama-mini", ""), ("another", " (a guess: the shape of llama-mini)")])
def test_receipts_report_settings_that_are_a_guess(named, monkeypatch, name, guess):
    row = ModelDefaults(names=("llama-mini",), shape=(4, 32), layer=LAYER, clamp=2.0, epsilon=0.1)
    monkeypatch.setattr("tl_rome.editors.model_defaults.MODEL_DEFAULTS", (*MODEL_DEFAULTS, row))
    model = named(name, row.shape)
    editor = Rome.prepare(model, covariance=covariance(model), contexts=CONTEXTS)
    receipt = editor(model, REQUEST).receipt
    assert receipt.departures == f"clamp=2.0{guess}"
    assert ("preset", f"released with clamp=2.0{guess}") in receipt.rows()
    mine = replace(editor, config=replace(RELEASED, clamp=1.5))
    assert mine(model, REQUEST).receipt.departures == "clamp=1.5"
    trained = FineTune.prepare(model, config=FT_L)(model, REQUEST).receipt
    assert trained.departures == f"epsilon=0.1{guess}"
    assert FineTune(config=replace(FT_L, epsilon=0.2))(model, REQUEST).receipt.departures == "epsilon=0.2"
    assert FineTune(config=FT_L)(model, REQUEST).receipt.departures == ""
