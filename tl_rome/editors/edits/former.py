"""Files of edits from when an edit changed W_out only, one matrix a layer: read as what is written today."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NAMES = {"u": "left", "v": "right", "change": "change"}


def of_today(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and header of a file of any time in the form of today, see `Edit.to_file`.

    Raises:
        KeyError: If the file is of neither form.
    """
    if "matrices" in header:
        return tensors, header
    found = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        found[f"{layer}.W_out.{_NAMES[part]}"] = tensor if part == "change" else tensor[:, None]
    receipt = dict(header["receipt"])
    share = receipt.pop("relative_change")
    del receipt["layer"]
    ranks = {layer: 1 if f"{layer}.W_out.left" in found else None for layer in header["layers"]}
    receipt["changes"] = [
        {"layer": layer, "matrix": "W_out", "rank": rank, "relative": share} for layer, rank in ranks.items()
    ]
    digests = {f"{layer}.W_out": pair for layer, pair in header.get("digests", {}).items()}
    matrices = [f"{layer}.W_out" for layer in header["layers"]]
    return found, {**header, "matrices": matrices, "receipt": receipt, "digests": digests}
