"""A quantiser that transformers runs on a CPU: MLP weights as int8 with one scale per output, packed like real ones."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tl_rome.running.matrices import mlp_matrices

_METHOD = "rounded_for_tests"
_PACKED = ("up_proj", "gate_proj", "down_proj", "dense_h_to_4h", "dense_4h_to_h")


class RoundedLinear(nn.Module):
    """A linear map whose weight is packed; x W^T of the rounded weight."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight * self.scale, self.bias)


@register_quantization_config(_METHOD)
class RoundedConfig(QuantizationConfigMixin):
    """What `load_model` is given as quantization_config."""

    def __init__(self, **kwargs: Any) -> None:
        vars(self)["quant_method"] = _METHOD


@register_quantizer(_METHOD)
class _Rounded(HfQuantizer):
    requires_calibration = False

    @property
    def is_trainable(self) -> Any:
        return False

    def is_serializable(self, **kwargs: Any) -> Any:
        return False

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name, module in list(model.named_modules()):
            if name.endswith(_PACKED):
                owner, _, own = name.rpartition(".")
                setattr(model.get_submodule(owner), own, RoundedLinear(module))
        return model


def dequantised(packed: Any, whole: Any) -> Any:
    """A whole model, with the weights written into it that a packed one has rounded."""
    for layer in range(packed.cfg.n_layers):
        for matrix in mlp_matrices(whole, layer):
            module = matrix.module(packed)
            assert isinstance(module, RoundedLinear)
            with torch.no_grad():
                matrix.weight(whole).copy_((module.weight * module.scale).T)
    return whole
