from types import ModuleType

import tl_rome
from tl_rome import editors

NAMES = vars(tl_rome)["__all__"]
PACKAGES = {"counterfact", "editors", "patching"}


def test_every_public_name_is_there_and_hides_no_module():
    """What users import is a function or a class, never a module of that name; the packages are there too."""
    assert {"load_model", "causal_trace", "rome", "edited_rows", "evaluate", "score_targets"} <= set(NAMES)
    assert {name for name in NAMES if isinstance(getattr(tl_rome, name), ModuleType)} == PACKAGES


def test_the_top_level_has_what_the_readme_uses_and_little_more():
    assert len(set(NAMES) - PACKAGES) <= 30


def test_every_preset_has_a_name_of_its_own():
    presets = {name for name in dir(editors) if isinstance(getattr(editors, name), editors.RomeConfig)}
    assert {preset.upper() for preset in editors.PRESETS} == presets
