"""The model card of an edit: what it did, with its warnings, what it belongs to, and how to load it."""

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from tl_rome.editors.export.portable import Portable
from tl_rome.models.smollm2 import NAME as EMBEDDED

WRITTEN = "<!-- written by tl_rome, and anew at every push -->"
"""In every card, and in no other text."""


def edit_card(
    edit: Portable, fingerprint: str, *, source: str | None, adapter: bool, location: str | None = None
) -> str:
    """Markdown with the metadata that the hub reads.

    Args:
        edit: Its receipts are shown.
        fingerprint: Of the model that it is for.
        source: Name or folder that the model was loaded from, where it is known.
        adapter: Whether a LoRA adapter lies beside the card.
        location: `hf://owner/name/file` of the edit's own file, or None where there is none.
    """
    about: dict[str, Any] = {"library_name": "peft" if adapter else "tl_rome"}
    if source is not None and _is_of_hub(source):
        about |= {"base_model": source} | ({"base_model_relation": "adapter"} if adapter else {})
    about["tags"] = ["tl_rome", "model-editing", "knowledge-editing", *(["lora"] if adapter else [])]
    receipts = [each.receipt for each in getattr(edit, "edits", [edit])]
    warned = [(each.title, text) for each in receipts for name, text in each.rows() if name == "WARNING"]
    facts = [fact for each in receipts for fact in getattr(each, "facts", ())]
    warned += [(f"{fact.prompt!r} to {fact.target_new!r}", text) for fact in facts for text in fact.warnings]
    base = f"`{source}`" if source else "one model"
    lines = [front_matter(about), "# Edited facts", ""]
    lines += [f"It changes what {base} says of some facts, and was made with tl_rome.", ""]
    lines += [f"> **WARNING** {_cell(title)}: {_cell(text)}\n>" for title, text in warned] or ["No warnings."]
    for receipt in receipts:
        lines += ["", f"## {_cell(receipt.title)}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(figures)} |" for name, figures in receipt.rows()]
    lines += ["", f"Fingerprint of the model that it belongs to: `{fingerprint}`; no other one takes it."]
    if location is not None:
        lines += ["", "## With tl_rome", "", "```python", *_with_tl_rome(edit, source, location), "```"]
    if adapter:
        folder = location.removeprefix("hf://").rpartition("/")[0] if location else "this folder"
        lines += ["", "## With PEFT", "", "```python", *_with_peft(source or "", folder), "```"]
    return "\n".join([*lines, ""])


def front_matter(about: Mapping[str, Any]) -> str:
    """What a card begins with: metadata, which is JSON and so YAML, and the mark of this package."""
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in about.items()), "---", WRITTEN, ""])


def _with_tl_rome(edit: Portable, source: str | None, location: str) -> list[str]:
    name = type(edit).__name__
    lines = ["from tl_rome import load_model", f"from tl_rome.editors import {name}", ""]
    lines += [f"model = load_model({source or 'the model that it belongs to'!r})"]
    lines += [f"edit = {name}.load({location!r}, model)", "with edit.applied(model):", "    ..."]
    return lines


def _with_peft(source: str, folder: str) -> list[str]:
    lines = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    lines += ["from tl_rome.models.smollm2 import smollm2_folder"] * (source == EMBEDDED)
    base = "smollm2_folder()" if source == EMBEDDED else repr(source)
    lines += ["", f"base = AutoModelForCausalLM.from_pretrained({base})"]
    lines += [f"model = PeftModel.from_pretrained(base, {folder!r})"]
    return lines


def _is_of_hub(source: str) -> bool:
    """Whether a name can be one of the hub, which refuses cards with others."""
    return source != EMBEDDED and not Path(source).exists() and bool(re.fullmatch(r"([\w.-]+/)?[\w.-]+", source))


def _cell(text: str) -> str:
    """Text inside a table of Markdown, whatever it holds."""
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", " ".join(escape(text, quote=False).split()))
