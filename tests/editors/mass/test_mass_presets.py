"""Every preset of mass editing, in every model that its sources name, has the settings of its source."""

import pytest
from support.families import KINDS

from tl_rome.editors import MASS_PRESETS, MEMIT
from tl_rome.editors.mass.config import mass_layers, mass_model_defaults

KIND = KINDS[0]
COMMON = {"max_evaluations": 20, "learning_rate": 0.5, "clamp": 0.75, "norm_penalty": 0.5, "kl_factor": 0.0625}
XL, J, NEOX = ("gpt2-xl", 48, 1600), ("gpt-j-6b", 28, 4096), ("gpt-neox-20b", 44, 6144)
LLAMA2, LLAMA3 = ("llama-2-7b-hf", 32, 4096), ("meta-llama-3-8b-instruct", 32, 4096)
MISTRAL, QWEN, SMALL = ("mistral-7b-v0.1", 32, 4096), ("qwen2.5-7b-instruct", 28, 3584), ("llama-3.2-3b", 28, 3072)
FOUR_TO_EIGHT = (4, 5, 6, 7, 8)
EASYEDIT = {"max_evaluations": 25, "clamp": 4.0, "norm_penalty": 1e-3}
SETTINGS = [
    ("memit", XL, (13, 14, 15, 16, 17), {"covariance_weight": 20_000}),
    ("alphaedit", XL, (13, 14, 15, 16, 17), {"covariance_weight": None, "l2": 10}),
    ("emmet", XL, (17,), {"covariance_weight": 1000, "equality_ridge": 0.1}),
    ("pmet", XL, (13, 14, 15, 16, 17), {"covariance_weight": 10_000, "clamp": 2}),
    ("memit", J, (3, 4, 5, 6, 7, 8), {"covariance_weight": 15_000, "max_evaluations": 25}),
    ("alphaedit_released", J, (3, 4, 5, 6, 7, 8), {"absolute_cut": 2e-2, "l2": 10, "max_evaluations": 25}),
    ("emmet", J, (5,), {"covariance_weight": 1, "equality_ridge": 0.1, "max_evaluations": 25}),
    (
        *("pmet", J, (3, 4, 5, 6, 7, 8)),
        {"covariance_weight": 6000, "max_evaluations": 30, "learning_rate": 0.2, "kl_factor": 1, "nll_factor": 1},
    ),
    ("memit", NEOX, (6, 7, 8, 9, 10), {"covariance_weight": 20_000, "clamp": 0.3}),
    (
        *("pmet", NEOX, (6, 7, 8, 9, 10)),
        {"covariance_weight": 15_000, "max_evaluations": 30, "clamp": 0.8, "kl_factor": 0.8},
    ),
    (
        *("emmet", LLAMA2, (5,)),
        {"covariance_weight": 1, "equality_ridge": 0.1, "max_evaluations": 25, "clamp": 4, "norm_penalty": 1e-3},
    ),
    ("memit", LLAMA2, FOUR_TO_EIGHT, {"covariance_weight": 15_000, **EASYEDIT}),
    ("pmet", LLAMA2, FOUR_TO_EIGHT, {"covariance_weight": 15_000, "clamp": 1}),
    ("memit", LLAMA3, FOUR_TO_EIGHT, {"covariance_weight": 15_000, "max_evaluations": 25, "learning_rate": 0.1}),
    (
        *("alphaedit_released", LLAMA3, FOUR_TO_EIGHT),
        {"absolute_cut": 2e-2, "l2": 10, "max_evaluations": 25, "learning_rate": 0.1},
    ),
    ("pmet", LLAMA3, FOUR_TO_EIGHT, {"covariance_weight": 15_000, "max_evaluations": 25, "learning_rate": 0.1}),
    ("memit", MISTRAL, FOUR_TO_EIGHT, {"covariance_weight": 15_000, **EASYEDIT}),
    ("memit", QWEN, FOUR_TO_EIGHT, {"covariance_weight": 15_000, **EASYEDIT}),
    ("alphaedit", QWEN, FOUR_TO_EIGHT, {"l2": 1, **EASYEDIT}),
    ("memit", SMALL, FOUR_TO_EIGHT, {"covariance_weight": 15_000, **EASYEDIT}),
]
"""Preset, model, layers, and what is not `COMMON`: the table of the sources' files."""
ALIKE = {"memit": ["memit_seq", "memit_rect", "memit_prune"], "alphaedit": ["alphaedit_released"]}
"""Presets that have the layers and the numbers of another."""


@pytest.mark.parametrize(
    ("preset", "model", "layers", "settings"), SETTINGS, ids=[f"{row[0]}-{row[1][0]}" for row in SETTINGS]
)
def test_a_preset_has_the_settings_of_its_source(tiny, monkeypatch, preset, model, layers, settings):
    named = tiny("llama", KIND)
    for setting, value in zip(("model_name", "n_layers", "d_model"), model, strict=True):
        monkeypatch.setattr(named.cfg, setting, value)
    for name in [preset, *ALIKE.get(preset, [])]:
        config = mass_model_defaults(named, MASS_PRESETS[name])
        assert {each: getattr(config, each) for each in COMMON | settings} == COMMON | settings
        found, choice = mass_layers(named, config)
        assert (found, choice.split()[0]) == (layers, "known")


def test_what_the_presets_share_and_what_tells_them_apart():
    for name, config in MASS_PRESETS.items():
        assert config.value_site == ("w_out+w_o" if name == "pmet" else "resid_post")
        assert config.spread == ("sqrt" if name == "pmet" else "linear")
        assert config.relax_when_predicted == (name == "pmet")
        assert config.memory == (name in ("memit_seq", "alphaedit", "alphaedit_released"))
        assert config.in_subspace == name.startswith("alphaedit")
        assert config.rect_share == ("alphaedit" if name == "memit_rect" else None)
        assert (config.prune_base is not None) == (name == "memit_prune")
        assert (config.equality_ridge is not None) == (name == "emmet")
        assert config.key_weighting == "half"
        assert (config.stop_loss, config.kl_template) == (0.05, "{} is a")
        assert (config.context_lengths, config.context_top_k) == (((10, 5),), 5)
    assert MEMIT.context_openings == ("The", "Therefore", "Because", "I", "You")
