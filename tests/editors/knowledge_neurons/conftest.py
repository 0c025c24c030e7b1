"""Golden data of knowledge neurons, and the model that it was computed with."""

from typing import Any

import pytest
from support.golden import golden_arrays, golden_gpt2


@pytest.fixture(scope="session")
def golden(shared_data):
    """The golden data, by name."""
    return golden_arrays(shared_data, "kn")


@pytest.fixture(scope="session")
def golden_model(golden, tmp_path_factory):
    """Give `golden_model(kind)`: its model in float64, shared, to be left as it was found."""
    models: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in models:
            models[kind] = golden_gpt2(golden, kind, tmp_path_factory.mktemp("golden-kn"))
        return models[kind]

    return get
