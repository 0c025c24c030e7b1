"""The house from the outside: imports go one way, no folder is crowded, and no public function hides a module."""

import ast
import importlib
import pkgutil
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tl_rome

ROOT = Path(tl_rome.__file__).parent
STOREYS = ({"patching", "editors"}, {"counterfact", "audit"}, {"zsre", "harness"}, {"cli"})
"""Folders by storey, lowest first, above everything else; those of one storey do not know each other."""
_PACKAGES = ("audit", "patching", "editors", "counterfact", "zsre", "harness")
PUBLIC = ("tl_rome", *(f"tl_rome.{name}" for name in _PACKAGES))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in ROOT.rglob("*.py")}


def imported(file: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inside or {node.module}
    return {name for name in found if name in MODULES and name != "tl_rome"}


GRAPH = {name: imported(file) for name, file in MODULES.items() if name != "tl_rome"}


def storey(module: str) -> tuple[int, str]:
    """Height and folder; 0 is the floor that all stand on."""
    folder = module.split(".")[1]
    return next((height for height, folders in enumerate(STOREYS, 1) if folder in folders), 0), folder


def test_imports_go_down_the_storeys_only():
    upward = []
    for module, targets in GRAPH.items():
        height, folder = storey(module)
        for target in targets:
            below, other = storey(target)
            if below > height or (below == height > 0 and other != folder):
                upward.append(f"{module} -> {target}")
    assert not upward


@pytest.mark.parametrize("folder", sorted({name.rpartition(".")[0] for name in GRAPH}))
def test_no_circle_between_the_rooms_of_a_folder(folder):
    depth = folder.count(".") + 2
    rooms: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        if module.startswith(folder + "."):
            room = ".".join(module.split(".")[:depth])
            inside = {".".join(t.split(".")[:depth]) for t in targets if t.startswith(folder + ".")}
            rooms[room] = rooms.get(room, set()) | inside - {room}
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as circle:
        pytest.fail(f"circle: {' -> '.join(circle.args[1])}")


def test_no_folder_is_crowded():
    crowded = {}
    for folder in {file.parent for file in MODULES.values()}:
        files = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
        if len(files) > 12:
            crowded[folder.name] = len(files)
    assert not crowded


def test_no_public_name_hides_a_module():
    hidden = []
    for package in PUBLIC:
        module = importlib.import_module(package)
        submodules = {info.name for info in pkgutil.iter_modules(module.__path__)}
        names = vars(tl_rome)["__all__"] if package == "tl_rome" else vars(module)
        hidden += [f"{package}.{name}" for name in names if name in submodules and callable(getattr(module, name))]
    assert not hidden
