"""What decides an editor's edits, as JSON: so that stored results of one setting never mix with those of another."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from tl_rome.storage.files import digest


def describe_editor(editor: Any) -> Any:
    """Settings of an editor: what its `identity()` returns, as those of `Rome` and `FineTune` do.

    Without that method a dataclass is described by its fields, and an object with a `digest`, such as a covariance, by
    that. Any other object or function is known by its name and its `config`: keep there, as a dataclass or a mapping,
    everything else that decides its edits.
    """
    identity = getattr(editor, "identity", None)
    if callable(identity) and not isinstance(editor, type):
        return _plain(identity())
    name = getattr(editor, "__qualname__", None) or type(editor).__qualname__
    if is_dataclass(editor) and not isinstance(editor, type):
        return {"editor": name, **{field.name: _plain(getattr(editor, field.name)) for field in fields(editor)}}
    return {"editor": name, "config": _plain(getattr(editor, "config", None))}


def settings_hash(described: Any) -> str:
    """16 hexadecimal digits of what `describe_editor` returned."""
    return digest([described])


def editor_name(editor: Any) -> str:
    """Name for tables, such as "rome", "r_rome", "ft_l" or "rome (draft)"; else that of the function or class."""
    preset = getattr(getattr(editor, "config", None), "preset", None)
    name = getattr(editor, "__name__", None) or type(editor).__name__.lower()
    if preset is None or preset == "released":
        return name
    return preset if name == "finetune" or name in preset else f"{name} ({preset})"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Tensor):
        return digest([str(value.dtype), value.double().cpu().flatten().tolist()])
    if isinstance(getattr(value, "digest", None), str):
        return {"digest": value.digest, "layer": getattr(value, "layer", None)}
    return describe_editor(value)
