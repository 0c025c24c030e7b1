"""What decides an editor's edits, as JSON: so that stored results of one setting never mix with those of another."""

import logging
from functools import partial
from typing import Any
from uuid import uuid4

from tl_rome.storage.description import describe, undescribed
from tl_rome.storage.files import digest

_log = logging.getLogger(__name__)
_NAMED_BY_PRESET = ("finetune", "knowledgeneurons")
"""Classes whose presets are the names of editors."""


def describe_editor(editor: Any) -> Any:
    """Settings of an editor: what its `identity()` returns, as those of `Rome` and `FineTune` do.

    Without that method a function is described by its code, defaults and closure, a `functools.partial` by its
    arguments too, and an object by its class and all that it holds; an object with a `digest`, such as a covariance, by
    that. See `tl_rome.storage.description`.
    """
    return describe(editor)


def resumable(name: str, described: Any) -> Any:
    """The settings under which a store keeps an editor's results, those of `describe_editor` as a rule.

    An editor that could not be described with certainty is logged, and gets settings that no other run has, so that
    nothing is taken from another run.

    Args:
        name: The editor's, for the message.
        described: Its settings.
    """
    if not (unknown := undescribed(described)):
        return described
    _log.warning(
        "results of %r cannot be continued by a later run: it holds %s, of which it is not known whether it is the "
        "same again; give the editor a method identity() that returns all that decides its edits, as JSON",
        name,
        ", ".join(sorted(set(unknown))),
    )
    return {"described": described, "run": uuid4().hex}


def settings_hash(described: Any) -> str:
    """16 hexadecimal digits of what `describe_editor` returned."""
    return digest([described])


def editor_name(editor: Any) -> str:
    """Name for tables, such as "rome", "r_rome", "ft_l" or "rome (draft)"; else that of the function or class."""
    while isinstance(editor, partial):
        editor = editor.func
    preset = getattr(getattr(editor, "config", None), "preset", None)
    name = getattr(editor, "__name__", None) or type(editor).__name__.lower()
    if preset is None or preset == "released":
        return name
    return preset if name in _NAMED_BY_PRESET or name in preset else f"{name} ({preset})"
