from dataclasses import asdict, replace

import pytest

from tl_rome.editors import DRAFT, NEURIPS, P_ROME, PRESETS, R_ROME, R_ROME_2024, RELEASED
from tl_rome.errors import InputError

COLUMNS = (
    "direction_key",
    "divisor_key",
    "value_base",
    "optimiser",
    "learning_rate",
    "weight_decay",
    "max_evaluations",
    "extra_evaluations",
    "sum_token_nll",
    "kl_factor",
    "norm_penalty",
    "clamp",
)
TABLE = {
    "draft": ("subject", "subject", "prompt", "gradient_descent", 10.0, 0.0, 100, 0, True, 0.0, 0.0, None),
    "neurips": ("contexts", "contexts", "prompt", "adam", 0.5, 1.5e-3, 20, 0, False, 1e2, 0.0, None),
    "released": ("contexts", "prompt", "prompt", "adam", 0.5, 0.0, 20, 0, False, 0.0625, 0.5, 4.0),
    "r_rome": ("contexts", "contexts", "key", "adam", 0.5, 0.0, 20, 0, False, 0.0625, 0.5, 4.0),
    "r_rome_2024": ("contexts", "contexts", "prompt", "adam", 0.5, 0.0, 20, 0, False, 0.0625, 0.5, 4.0),
    "p_rome": ("prompt", "prompt", "prompt", "adam", 0.5, 0.0, 20, 0, False, 0.0625, 0.5, 4.0),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table(name):
    config = PRESETS[name]
    assert config.preset == name
    assert tuple(asdict(config)[column] for column in COLUMNS) == TABLE[name]
    assert config.stop_loss == 5e-2
    assert config.kl_template == "{} is a"


def test_no_preset_is_missing_from_the_table():
    assert set(TABLE) == set(PRESETS)
    assert tuple(PRESETS.values()) == (DRAFT, NEURIPS, RELEASED, R_ROME, R_ROME_2024, P_ROME)


def test_contexts_of_the_presets():
    assert RELEASED.context_lengths == R_ROME.context_lengths == P_ROME.context_lengths == ((5, 10), (10, 10))
    assert DRAFT.context_lengths == ()
    assert sum(count for _, count in NEURIPS.context_lengths) == 50
    assert [length for length, _ in NEURIPS.context_lengths] == list(range(2, 11))
    assert RELEASED.contexts_choice == "sampled from the start token, top-k 5"
    assert DRAFT.contexts_choice == "the prompt alone"


def test_r_rome_and_p_rome_differ_from_the_release_in_one_key_each():
    assert replace(R_ROME, preset="released", divisor_key="prompt", value_base="prompt") == RELEASED
    assert replace(R_ROME_2024, preset="r_rome", value_base="key") == R_ROME
    assert replace(P_ROME, preset="released", direction_key="contexts") == RELEASED


def test_departures_from_a_preset_are_reported():
    assert RELEASED.departures == ""
    assert replace(R_ROME, clamp=3.0, kl_factor=0.1).departures == "kl_factor=0.1, clamp=3.0"
    assert replace(RELEASED, preset="mine").departures == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give a number above 0"),
        ({"max_evaluations": 0}, "max_evaluations is 0; give a number of at least 1"),
        ({"clamp": -1.0}, "clamp is -1.0; give a number above 0"),
        ({"extra_evaluations": -1}, "extra_evaluations is -1; give a number of at least 0"),
        ({"optimiser": "gradient_descent", "weight_decay": 0.1}, "weight_decay is Adam's"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        replace(RELEASED, **change)
