"""How hard the library is attacked, and a table of what came of it.

A quick profile of Hypothesis, `ci`, draws the same few examples every time and is what `make test-attack` runs;
`fuzz` (`make fuzz`, or `--hypothesis-profile=fuzz` with this folder) draws many new ones. `TL_ROME_FUZZ=3` makes all
of its counts three times as large. A test of either notes what came of each attempt in `outcomes`.

The library is attacked as users have it. Where annotations are checked at run time, as on leg 3.9, these tests are left
out: the checks would refuse wrong types in the library's place, and put code of their own around all of its functions.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from support.attacked import Attacked
from support.families import KINDS

from tl_rome.errors import TLRomeError

TIMES = int(os.environ.get("TL_ROME_FUZZ", "1"))
_COMMON: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

settings.register_profile("ci", max_examples=2, derandomize=True, phases=[Phase.generate, Phase.shrink], **_COMMON)
settings.register_profile("fuzz", max_examples=50 * TIMES, print_blob=False, **_COMMON)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile("ci")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if config.getoption("--jaxtyping-packages") else None


@pytest.fixture(scope="session")
def effort(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """Give `effort(few, many)`: the number of attempts of this profile."""
    fuzzing = pytestconfig.getoption("--hypothesis-profile") == "fuzz"
    return lambda few, many: many * TIMES if fuzzing else few


@pytest.fixture(scope="module", params=KINDS)
def attacked(request: pytest.FixtureRequest, family_dir: Callable[[str], Path]) -> Attacked:
    """A tiny model of each class, with an edit, a sequence and jobs."""
    return Attacked(family_dir("gpt2"), request.param)


class Outcomes(Counter[str]):
    """How often each kind of outcome was seen in one test, and examples of the faults."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[tuple[str, str], str] = {}

    def note(self, error: BaseException | None) -> None:
        """Count what a call raised, or that it raised nothing."""
        if isinstance(error, TLRomeError):
            self[f"refused: {type(error).__name__}"] += 1
        else:
            self["accepted" if error is None else type(error).__name__] += 1

    def fault(self, kind: str, example: str, of: str = "") -> None:
        """Count what must not be, and keep the shortest example of each kind, or of each kind and place."""
        self[f"FAULT: {kind}"] += 1
        if len(example) < len(self.examples.get((kind, of), example + " ")):
            self.examples[kind, of] = example

    def check(self) -> None:
        """Fail if there was a fault."""
        shown = [f"{self[f'FAULT: {kind}']} x {kind}, as {example}" for (kind, _), example in self.examples.items()]
        assert not shown, "\n".join(shown)


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """Count outcomes by kind; the table at the end adds them up for each test function."""
    counted = Outcomes()
    yield counted
    request.node.user_properties.append(("outcomes", [request.node.originalname, dict(counted)]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the outcomes of all tests that count them; reports bring them here from the workers too."""
    tables: dict[str, Counter[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for name, (test, counted) in report.user_properties:
                    if name == "outcomes":
                        tables.setdefault(test, Counter()).update(counted)
    for test, counted in sorted(tables.items()):
        terminalreporter.write_line(f"{test}: {sum(counted.values())} attempts")
        for outcome, times in counted.most_common():
            terminalreporter.write_line(f"{times:8}  {outcome}")
