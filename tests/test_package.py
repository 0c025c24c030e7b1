"""The package as a whole: what importing it costs and touches, how the command line starts, what the wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.leg("3.9")
ROOT = Path(__file__).parents[1]
SLOW_TO_IMPORT = {
    *("circuitsvis", "datasets", "matplotlib", "nltk", "pandas", "punkt", "requests", "sklearn"),
    *("transformer_lens", "transformers"),
}

IMPORT_SECONDS = """
import time, torch
start = time.perf_counter()
import tl_rome
print(time.perf_counter() - start)
"""

IMPORTED = """
import sys, tl_rome
print(*sys.modules)
"""

# Every module of the package is imported, not only those that `import tl_rome` reaches; but not the command line, which
# is a program's own. Python's `random` is left out: third-party imports draw from it, and nothing here uses it.
GLOBAL_STATE = """
import importlib, logging, os, pkgutil, warnings
import matplotlib, numpy, torch

def state():
    root = logging.getLogger()
    return {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "torch threads": torch.get_num_threads(),
        "torch RNG": torch.get_rng_state().tolist(),
        "numpy RNG": str(numpy.random.get_state()),
        "root logging": (root.level, list(root.handlers)),
        "warning filters": list(warnings.filters),
        "rcParams": dict(matplotlib.rcParams),
        "environment": dict(os.environ),
    }

before = state()
import tl_rome
for module in pkgutil.walk_packages(tl_rome.__path__, "tl_rome."):
    if module.name != "tl_rome.cli":
        importlib.import_module(module.name)
after = state()
print(*(name for name in before if before[name] != after[name]), sep=", ")
"""


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
def test_import_adds_less_than_half_a_second_to_torch():
    # Three tries: the first may compile bytecode, and the machine may be busy.
    assert any(float(run_python("-c", IMPORT_SECONDS).stdout) < 0.5 for _ in range(3))


def test_import_leaves_slow_packages_alone():
    imported = set(run_python("-c", IMPORTED).stdout.split())
    assert "tl_rome" in imported
    assert not imported & SLOW_TO_IMPORT


@pytest.mark.slow
def test_import_changes_no_global_state():
    assert run_python("-c", GLOBAL_STATE).stdout.strip() == ""


def test_help_answers_without_importing_torch():
    result = run_python("-X", "importtime", "-m", "tl_rome.cli", "--help")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "Usage" in result.stdout
    assert "tl_rome" in imported
    assert not imported & (SLOW_TO_IMPORT | {"torch"})


def test_wheel_holds_the_whole_package_and_nothing_else(tmp_path):
    run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tl_rome").rglob("*") if p.is_file()}
    assert packed == {name for name in source if "__pycache__" not in name}
    assert "tl_rome/py.typed" in packed
    assert any(name.startswith("tl_rome/data/") for name in packed)
