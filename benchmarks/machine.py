"""This machine's speed and this process's memory, and the models that are measured."""

import resource
import time
from typing import Any

import torch
from shapes import random_model

import tl_rome


def load(name: str, model_class: Any) -> Any:
    """A model that load_model knows, or a GPT-2 XL with random weights."""
    if name != "gpt2-xl-random":
        return tl_rome.load_model(name, model_class=model_class, progress=False)
    return random_model("gpt2-xl", model_class or "bridge")


def peak_flops_per_second(size: int = 2048, repeats: int = 4) -> float:
    """Rate of a large float32 matrix product, per CPU-second."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    torch.mm(left, right)
    started = time.process_time()
    for _ in range(repeats):
        torch.mm(left, right)
    return repeats * 2 * size**3 / (time.process_time() - started)


def peak_memory_mb() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
