"""Tensors that behave as on a device without float64, such as Apple's mps, while their numbers are on the CPU."""

import torch

_LACKING = torch.device("mps")
_CPU = torch.device("cpu")


class Lacking(torch.Tensor):
    """Says that it is on mps; refuses to be or to make float64 there; `.to("cpu")` gives a plain tensor."""

    @property
    def device(self):  # type: ignore[override]
        return _LACKING

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and _CPU in (*args, *(kwargs or {}).values()):
            plain = args[0].as_subclass(torch.Tensor)
            if len({*args[1:], *(kwargs or {}).values()}) > 1:
                raise TypeError("moved and converted at once")
            return plain
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs)
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError("mps has no float64")
        return found


def lacking(tensor):
    """The tensor in float32, on the device without float64."""
    return tensor.float().as_subclass(Lacking)
