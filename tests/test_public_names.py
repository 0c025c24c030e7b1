from types import ModuleType

import tl_rome
from tl_rome import editors

NAMES = vars(tl_rome)["__all__"]


def test_every_public_name_is_there_and_hides_no_module():
    """What users import is a function or a class, never a module of that name."""
    assert {"load_model", "causal_trace", "rome", "edited_rows", "measure_convergence"} <= set(NAMES)
    assert not [name for name in NAMES if isinstance(getattr(tl_rome, name), ModuleType)]


def test_every_preset_has_a_name_of_its_own():
    presets = {name for name in dir(editors) if isinstance(getattr(editors, name), editors.RomeConfig)}
    assert {preset.upper() for preset in editors.PRESETS} == presets
    assert presets | {"FT", "FT_L"} <= set(NAMES)
