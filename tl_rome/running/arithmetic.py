"""What arithmetic a device does: where float64 work goes, and whether float32 products are those of float32.

Sums of keys, the covariance's Cholesky factor and the closed form are in float64, on the model's device where that has
it. Apple's mps has none; the work goes to the CPU from there.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.running.forward import device_of
from tl_rome.sites import HookedModel

_WITHOUT_FLOAT64 = ("mps",)
"""Types of devices."""


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def in_float64(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values in float64, without gradient, on the device for that."""
    return tensor.detach().to(float64_device(tensor.device)).double()  # moved first: what has no float64 makes none


def shortened_products(model: HookedModel) -> str:
    """The format in which a float32 model's matrix products are computed where torch is set to a shorter one, or "".

    `torch.set_float32_matmul_precision` and `torch.backends.cuda.matmul.allow_tf32` are such settings: TF32 keeps 10 of
    float32's 23 bits of mantissa.
    """
    device = device_of(model)
    backends: Any = torch.backends
    chosen = (backends.mkldnn if device.type == "cpu" else backends.cuda).matmul.fp32_precision
    chosen = backends.fp32_precision if chosen == "none" else chosen
    return "" if chosen in ("none", "ieee") or model.cfg.dtype != torch.float32 else chosen
