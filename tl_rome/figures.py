"""What all figures share: axes of a new one, text that its fonts can draw, and its PNG."""

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_axes(width: float, height: float) -> "Axes":
    """Axes of a new figure, in inches."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), dpi=150, layout="constrained")
    return ax


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    image = BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def drawable(text: str) -> str:
    r"""Escape what the current fonts cannot draw (`\u6771`), where matplotlib would draw a box and warn each time."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in FontProperties().get_family()]
    return "".join(
        char if any(font.get_char_index(ord(char)) for font in fonts) else char.encode("unicode_escape").decode()
        for char in text
    )
