"""Where a configuration is not the preset that it names."""

from dataclasses import fields
from typing import Any


def departures_from(config: Any, preset: Any) -> str:
    """The fields in which they differ, such as "clamp=3.0"; for receipts.

    Args:
        config: A configuration.
        preset: Another of the same class.
    """
    pairs = ((field.name, getattr(config, field.name)) for field in fields(preset))
    return ", ".join(f"{name}={value!r}" for name, value in pairs if value != getattr(preset, name))
