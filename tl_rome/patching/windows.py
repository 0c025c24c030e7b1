"""Which layers a restored run covers: single MLP or attention outputs have negligible effects, runs of ten do not.

The paper (appendix B.2) prints l-4 ... l+5 around the plotted layer l, as the draft does; the authors' code takes
l-5 ... l+4. Both clip at the edges, where windows are narrower.
"""

from tl_rome.errors import InputError
from tl_rome.patching.config import Clipping, check_choice


def layer_window(layer: int, n_layers: int, width: int, clipping: Clipping = "released") -> range:
    """Layers restored together when the effect is plotted at `layer`.

    Args:
        layer: Centre of the window.
        n_layers: Layers of the model; the window is clipped to them.
        width: Number of layers before clipping, at least 1.
        clipping: "released" is l - width//2 onwards, "draft" is l - (width-1)//2 onwards; equal for odd widths.

    Raises:
        InputError: If the width is below 1 or the clipping is unknown.
    """
    if width < 1:
        raise InputError(f"a window needs a width of at least 1 layer, got {width}")
    check_choice("clipping", clipping, Clipping)
    start = layer - (width // 2 if clipping == "released" else (width - 1) // 2)
    return range(max(0, start), min(n_layers, start + width))
