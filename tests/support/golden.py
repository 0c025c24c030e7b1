"""Reference arrays of KN, KE and MEND, and the tiny GPT-2 that they were computed with, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.golden_gpt2 import save_golden_gpt2
from tl_rome.models.loading import load_model

MATRICES = {"c_fc": "W_in", "c_proj": "W_out"}
"""GPT-2's names of matrices, and those of TransformerLens."""


def golden_arrays(shared_data: Path, name: str) -> dict[str, Tensor]:
    """All arrays of one file."""
    with np.load(shared_data / "golden" / "baselines" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def golden_gpt2(arrays: dict[str, Tensor], kind: str, folder: Path) -> Any:
    """The model whose weights are the arrays `W.*`, saved in the folder first."""
    path = save_golden_gpt2(arrays, folder)
    return load_model(str(path), model_class=kind, dtype=torch.float64, device="cpu", progress=False)
