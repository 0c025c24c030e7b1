"""What the README and the pages of the documentation have in them that can be run or checked."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"

_FENCE = re.compile(
    r"(?P<mark>^<!-- not run: [^\n]+ -->\n)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^ *```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of Python."""

    code: str
    """As it is pasted."""
    line: int
    """Line of the page that comes before its first."""
    runs: bool
    """Whether it can be run here; one that needs a GPU, a hub or a cluster says so in a comment above it."""

    @property
    def stated(self) -> list[str]:
        """What its comments say that it prints."""
        return re.findall(r"# prints (.+)$", self.code, flags=re.MULTILINE)


def python_blocks(text: str) -> list[Block]:
    """The fenced Python blocks of a page, in order."""
    found = [match for match in _FENCE.finditer(text) if match["language"] in ("python", "py")]
    return [Block(match["code"], text[: match.start("code")].count("\n"), match["mark"] is None) for match in found]


def commands(text: str) -> list[list[str]]:
    """Words of each `$ tl-rome ...` line of a page's console blocks, the name of the program left out."""
    consoles = [match["code"] for match in _FENCE.finditer(text) if match["language"] == "console"]
    lines = [line for code in consoles for line in code.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("$ tl-rome")]


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted(DOCS.rglob("*.md"))
