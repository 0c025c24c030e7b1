import inspect

import pytest

from tl_rome.errors import InputError
from tl_rome.patching import layer_window


@pytest.mark.parametrize(
    ("layer", "released", "draft"),
    [
        (0, range(0, 5), range(0, 6)),
        (4, range(0, 9), range(0, 10)),
        (5, range(0, 10), range(1, 11)),
        (17, range(12, 22), range(13, 23)),
        (42, range(37, 47), range(38, 48)),
        (43, range(38, 48), range(39, 48)),
        (47, range(42, 48), range(43, 48)),
    ],
)
def test_ten_layers_of_gpt2_xl(layer, released, draft):
    assert layer_window(layer, 48, 10) == layer_window(layer, 48, 10, "released") == released
    assert layer_window(layer, 48, 10, "draft") == draft


@pytest.mark.parametrize("width", [1, 3, 9])
def test_odd_widths_are_centred_in_both_conventions(width):
    for layer in range(4, 16):
        expected = range(layer - width // 2, layer + width // 2 + 1)
        assert layer_window(layer, 20, width, "released") == layer_window(layer, 20, width, "draft") == expected


@pytest.mark.parametrize("clipping", ["released", "draft"])
def test_every_window_holds_its_layer_and_stays_inside_the_model(clipping):
    for width in range(1, 9):
        for layer in range(4):
            window = layer_window(layer, 4, width, clipping)
            assert layer in window
            assert set(window) <= set(range(4))


@pytest.mark.parametrize("width", [0, -3])
def test_a_width_below_one_is_refused(width):
    with pytest.raises(InputError, match=f"at least 1 layer, got {width}"):
        layer_window(2, 4, width)


def test_an_unknown_clipping_is_refused():
    with pytest.raises(InputError, match="clipping 'authors' is unknown; choose 'released' or 'draft'"):
        inspect.unwrap(layer_window)(2, 4, 3, "authors")  # type checks, which only tests have, would be first
