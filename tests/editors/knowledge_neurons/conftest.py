"""Golden data of knowledge neurons, and the model that it was computed with."""

from typing import Any

import numpy as np
import pytest
import torch
from support.golden_gpt2 import save_golden_gpt2

from tl_rome.models.loading import load_model


@pytest.fixture(scope="session")
def golden(shared_data):
    """The golden data, by name."""
    path = shared_data / "golden" / "baselines" / "kn.npz"
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


@pytest.fixture(scope="session")
def golden_model(golden, tmp_path_factory):
    """Give `golden_model(kind)`: its model in float64, shared, to be left as it was found."""
    folder = save_golden_gpt2(golden, tmp_path_factory.mktemp("golden-kn"))
    models: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in models:
            options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu", "prepend_bos": False}
            models[kind] = load_model(str(folder), model_class=kind, progress=False, **options)
        return models[kind]

    return get
