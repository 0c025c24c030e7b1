from types import SimpleNamespace
from unittest.mock import ANY

import pytest
from support.families import KINDS

from tl_rome.editors import default_layer
from tl_rome.editors.layers import choose_layer
from tl_rome.errors import InputError

KIND = KINDS[0]


def test_the_callers_choice_comes_first_and_is_reported(tiny):
    model, statistics = tiny("llama", KIND), SimpleNamespace(layer=3)
    assert choose_layer(model, 2, statistics) == (2, "given")
    assert choose_layer(model, None, statistics) == (3, "that of the covariance")
    assert choose_layer(model, None) == (default_layer(model), "a quarter of the way up") == (1, ANY)
    suggestion = SimpleNamespace(layer=2, effect=0.1)
    assert choose_layer(model, suggestion) == (2, f"suggested: {suggestion}")


@pytest.mark.parametrize("layer", [4, -1, SimpleNamespace(layer=9)])
def test_layers_that_cannot_be_used(tiny, layer):
    with pytest.raises(InputError, match="layer"):
        choose_layer(tiny("llama", KIND), layer)
