"""What the site has beside its pages: notebooks, the changelog, what the code knows best, and llms.txt."""

import inspect
import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

_ROOT = Path(__file__).parents[2]
_pages: dict[str, tuple[str, str]] = {}
"""Title and text of each page, for llms.txt; begun anew with every build."""


@event_priority(50)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Any, config: Any) -> Any:
    """Add what lies outside docs/."""
    _pages.clear()
    for path in sorted((_ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{path.name}", str(_ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "changelog.md", abs_src_path=str(_ROOT / "CHANGELOG.md")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what the code knows better."""
    for name, written in (("commands", _commands), ("columns", _columns)):
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, written())
    _pages[page.file.src_uri] = (page.title or page.file.name, markdown)
    return markdown


def on_post_build(config: Any) -> None:
    """Write llms.txt, which lists the pages, and llms-full.txt, which has their text."""
    base = config.site_url or ""
    lines = ["# tl_rome", "", f"> {config.site_description}", ""]
    for section in config.nav:
        (title, entries), *_ = section.items()
        if isinstance(entries, str):
            entries = [section]
        listed = [(name, uri) for entry in entries for name, uri in entry.items()]
        lines += [f"## {title}", "", *(f"- [{name}]({base}{_address(uri)}){_summary(uri)}" for name, uri in listed), ""]
    site = Path(config.site_dir)
    (site / "llms.txt").write_text("\n".join(lines), encoding="utf-8")
    texts = [f"<!-- {uri} -->\n\n{text}" for uri, (_, text) in _pages.items() if uri != "changelog.md"]
    (site / "llms-full.txt").write_text("\n\n".join(texts), encoding="utf-8")


def _address(uri: str) -> str:
    return "./" if uri == "index.md" else f"{uri.rpartition('.')[0]}/"


def _summary(uri: str) -> str:
    """The first sentence of a page's first paragraph."""
    _, text = _pages.get(uri, ("", ""))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in prose.split("\n\n"):
        plain = " ".join(block.split())
        if plain and not re.match(r"[#|<!`:-]", plain):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", plain)
            return f": {re.split(r'(?<=[.]) (?=[A-Z])', plain)[0].rstrip(':')}"
    return ""


def _commands() -> str:
    """Every command with its options, as `--help` has them."""
    import typer

    from tl_rome.cli import app

    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        options = [each for each in command.params if each.param_type_name == "option"]
        usage = " ".join(["tl-rome", name, *(f"{each.name.upper()}" for each in arguments), "[OPTIONS]"])
        rows = [(f"`{each.name.upper()}`", each.help, "required" if each.required else "") for each in arguments]
        rows += [(_spelling(each), each.help, _default(each)) for each in options]
        table = [f"| {what} | {_cell(text)} | {default} |" for what, text, default in rows]
        about = inspect.cleandoc(command.help or "")
        parts += [f"## tl-rome {name}\n\n{about}\n\n```console\n$ {usage}\n```\n"]
        parts += ["\n".join(["| | | default |", "|---|---|---|", *table]) + "\n"]
    return "\n".join(parts)


def _spelling(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {_cell(option.metavar or _kind(option.type_descriptor.annotation))}"


def _kind(annotation: Any) -> str:
    """What an option takes, in a word, or its choices."""
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    words = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    return next((word for kind, word in words.items() if kind in (annotation, *get_args(annotation))), "TEXT")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    if option.default is None or option.is_flag or callable(option.default):
        return ""
    shown = option.default
    shown = getattr(shown, "value", shown)
    return f"`{','.join(map(str, shown)) if isinstance(shown, tuple | list) else shown}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("{}", "`{}`")


def _columns() -> str:
    """Every column of the tables with its meaning."""
    from tl_rome.counterfact.metrics.columns import COLUMNS

    rows = [f"| {_cell(name)} | {_cell(text)} |".replace("*", r"\*") for name, text in COLUMNS.items()]
    return "\n".join(["| column | meaning |", "|---|---|", *rows])
