"""What the settings of a trace can be chosen from."""

from typing import Any, Literal, get_args

from tl_rome.errors import InputError

Clipping = Literal["released", "draft"]
"""Which layers a window covers, see `layer_window`."""
Direction = Literal["denoising", "noising"]
"""Whether clean states are restored in corrupted runs, or corrupted states put into a clean run."""
MetricName = Literal["prob", "logprob"]
"""The target's probability, in [0, 1], or its logarithm, in nats."""
Sever = Literal["mlp", "attn"]
"""Whose outputs are frozen at the patched position."""
Method = Literal["incremental", "plain"]
"""How an exact trace is computed: nothing twice, or the whole model for each cell."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is not one of a `Literal`'s.

    Raises:
        InputError: If it is not; the message lists the choices.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise InputError(f"{name} {value!r} is unknown; choose {' or '.join(map(repr, allowed))}")
