"""A tiny model's folder, and key statistics of it on disk."""

from pathlib import Path

import pytest
from support.families import KINDS, SENTENCES

from tl_rome.editors.covariance.estimation import estimate_covariance


@pytest.fixture(scope="session")
def folder(family_dir) -> Path:
    return family_dir("gpt2")


@pytest.fixture(scope="session")
def statistics(tiny, tmp_path_factory) -> Path:
    covariance = estimate_covariance(tiny("gpt2", KINDS[0]), 1, SENTENCES, source="sentences", progress=False)
    return covariance.save(tmp_path_factory.mktemp("statistics") / "cov.safetensors")
