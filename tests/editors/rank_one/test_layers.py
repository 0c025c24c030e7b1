from types import SimpleNamespace

import pytest
from support.families import KINDS

from tl_rome.editors import default_layer
from tl_rome.editors.rank_one.layers import choose_layer
from tl_rome.errors import InputError

KIND = KINDS[0]


def test_layers_of_the_sources():
    found = {shape: default_layer(*shape) for shape in [(48, 1600), (36, 1280), (24, 1024), (28, 4096), (30, 576)]}
    assert list(found.values()) == [17, 12, 8, 5, 5]
    assert default_layer(12, 768) == 3


def test_what_is_said_comes_first_and_is_told(tiny):
    model, statistics = tiny("llama", KIND), SimpleNamespace(layer=3)
    assert choose_layer(model, 2, statistics) == (2, "given")
    assert choose_layer(model, None, statistics) == (3, "that of the covariance")
    assert choose_layer(model, None) == (1, "a quarter of the way up")
    suggestion = SimpleNamespace(layer=2, effect=0.1)
    assert choose_layer(model, suggestion) == (2, f"suggested: {suggestion}")


@pytest.mark.parametrize("layer", [4, -1, SimpleNamespace(layer=9), "auto"])
def test_layers_that_cannot_be_used(tiny, layer):
    with pytest.raises(InputError, match="layer"):
        choose_layer(tiny("llama", KIND), layer)
