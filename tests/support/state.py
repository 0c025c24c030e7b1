"""What a call must leave as it found it: a model down to its bits, and the settings of the process."""

import hashlib
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Any]
"""By name, what must not change; two of them compare with `changed`."""

SETTINGS = ("output_attentions", "output_hidden_states", "use_cache")


def model_state(model: Any) -> State:
    """Weights bit for bit, hooks, patched methods, modes, gradients, settings and attributes of a model."""
    modules = dict(_modules(model))
    parameters = {id(tensor): (name, tensor) for owner in _owners(model) for name, tensor in owner.named_parameters()}
    config = getattr(getattr(model, "original_model", None), "config", None)
    return {
        "weights": _digest([tensor for _, tensor in parameters.values()]),
        "buffers": _digest([tensor for owner in _owners(model) for tensor in owner.buffers()]),
        "hooks": {name: count for name, module in modules.items() if any(count := _hooks(module))},
        "patched": sorted(name for name, module in modules.items() if "forward" in vars(module)),
        "training": sorted(name for name, module in modules.items() if module.training),
        "frozen": sorted(name for name, tensor in parameters.values() if not tensor.requires_grad),
        "gradients": sorted(name for name, tensor in parameters.values() if tensor.grad is not None),
        "attributes": sorted(vars(model)),
        "settings": [getattr(config, name, None) for name in SETTINGS],
    }


def process_state() -> State:
    """Modes of torch, every global random state, and who is told of Ctrl-C."""
    return {
        "gradients on": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch's random state": _digest([torch.get_rng_state()]),
        # Checks of annotations at run time look at random items of lists.
        "Python's random state": None if "beartype" in sys.modules else hash(random.getstate()),
        "NumPy's random state": _digest([torch.from_numpy(np.random.get_state()[1].astype(np.int64))]),  # noqa: NPY002
        "handler of SIGINT": signal.getsignal(signal.SIGINT),
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
    }


def changed(before: State, after: State) -> str:
    """What differs, for an assertion to show; nothing if they are the same."""
    return "; ".join(
        f"{name}: {_difference(before[name], after[name])}" for name in before if before[name] != after[name]
    )


def _difference(before: Any, after: Any) -> str:
    """Two values, of collections only what one of them has alone."""
    if isinstance(before, dict):
        before, after = (
            {key: value for key, value in one.items() if other.get(key) != value}
            for one, other in ((before, after), (after, before))
        )
    elif isinstance(before, list):
        before, after = ([x for x in one if x not in other] for one, other in ((before, after), (after, before)))
    return f"{before} -> {after}"


def _owners(model: Any) -> list[nn.Module]:
    """The model and, of a bridge, the model inside, which it does not count among its modules."""
    original = getattr(model, "original_model", None)
    return [model] if original is None else [model, original]


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    for owner in _owners(model):
        for name, module in owner.named_modules():
            yield f"{type(owner).__name__}.{name}", module


def _hooks(module: Any) -> tuple[int, ...]:
    """Numbers of torch's hooks on a module and of TransformerLens's."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "fwd_hooks", "bwd_hooks")
    return tuple(len(getattr(module, name, ())) for name in names)


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
