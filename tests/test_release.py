"""What a release says of itself, without building one, which `make release-check` does."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import tl_rome

REPOSITORY = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.leg("3.9")


def test_the_citation_has_what_its_schema_requires():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert all("name" in author or {"family-names", "given-names"} <= author.keys() for author in cited["authors"])
    for reference in cited["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
    assert cited.get("version", tl_rome.__version__) == tl_rome.__version__


def test_the_version_is_written_once_and_the_addresses_are_of_one_repository():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" in project["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", tl_rome.__version__)
    home = project["urls"]["Homepage"]
    assert all(url.startswith(home) for url in project["urls"].values())
    assert home in (REPOSITORY / "CITATION.cff").read_text("utf-8")


def test_publishing_needs_no_secret():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/publish.yml").read_text("utf-8"))
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in str(workflow)
