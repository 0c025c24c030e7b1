"""What tracing, editing and evaluating cost on this machine's accelerator, or on its CPU for small shapes.

Models have random weights in the shapes of GPT-2 XL (float32, both classes) and GPT-J (bfloat16). Each work is run once
for the wall time and, unless that would take minutes, once under torch's profiler, which adds up its kernels (on a CPU:
the operators' own time); the least is its necessary multiply-adds at the rate of a large matrix product in the model's
dtype, measured here too. Peak memory is what tensors took on an accelerator, and the process's on a CPU.

`--proxy` measures a deep thin model on one CPU thread instead, see `proxy`. The last line is one JSON object.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from covariance import forward_seconds
from least import block_weights, least_of_edit, least_of_map
from machine import peak_memory_mb
from proxy import COMPONENTS, CONTEXTS, WORKS, measure_proxy
from shapes import random_model
from torch.profiler import ProfilerActivity, profile, supported_activities

from tl_rome.counterfact import load_counterfact
from tl_rome.editors import RELEASED, Rome
from tl_rome.editors.covariance.estimation import covariance_of
from tl_rome.editors.covariance.moments import KeyMoments, _batches, stream_moments
from tl_rome.editors.layers import default_layer
from tl_rome.editors.rank_one.batch import Rewrite
from tl_rome.facts import Fact
from tl_rome.generation import generate_to_length
from tl_rome.patching import GaussianNoise, causal_trace
from tl_rome.patching.patch import Patch
from tl_rome.patching.runs import Runs
from tl_rome.running.borrowed import borrowed
from tl_rome.tokens import encode, encode_fact

FULL = (("gpt2-xl", "bridge", "float32"), ("gpt2-xl", "hooked", "float32"), ("gpt-j", "bridge", "bfloat16"))
SMALL = tuple((f"{name.removesuffix('-xl')}-small", kind, dtype) for name, kind, dtype in FULL)
NOISE = GaussianNoise(0.1, 10)
LENGTH = 50
"""Tokens of a text."""
PLAIN_BATCH = 16384


class Meter:
    """Times works on a device, against the rate of its large matrix products."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._accelerator = device.type != "cpu"
        self.together, self.texts, self.tokens = (32, 80, 16_384) if self._accelerator else (4, 8, 2048)
        """Edits and texts that are made at once, and tokens of key statistics, at least."""
        size = 8192 if self._accelerator else 1024
        left, right = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
        self.seconds(lambda: left @ right)
        self.rate = 2 * size**3 / min(self.seconds(lambda: left @ right) for _ in range(3))

    def seconds(self, work: Callable[[], Any]) -> float:
        """Wall seconds, with the device's work done."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def measure(self, work: Callable[[], Any], least: float, *, kernels: bool = True) -> dict[str, float]:
        """The figures of one work.

        Args:
            work: Run twice.
            least: FLOP that it needs.
            kernels: Whether to run it a second time, to add those up.
        """
        if self._accelerator:
            torch.accelerator.reset_peak_memory_stats()
        wall = self.seconds(work)
        peak = torch.accelerator.max_memory_allocated() / 2**20 if self._accelerator else peak_memory_mb()
        found = {"wall": wall, "peak_memory_mb": peak, "least_flop": least, "wall_to_least": wall * self.rate / least}
        return {**found, **(self._kernels(work, wall) if kernels else {})}

    def _kernels(self, work: Callable[[], Any], wall: float) -> dict[str, float]:
        kind = supported_activities() - {ProfilerActivity.CPU} if self._accelerator else {ProfilerActivity.CPU}
        with profile(activities=kind) as profiled:
            self.seconds(work)
        each = "self_device_time_total" if self._accelerator else "self_cpu_time_total"
        seconds = sum(getattr(event, each) for event in profiled.key_averages()) / 1e6
        return {"kernels": seconds, "wall_to_kernels": wall / seconds}

    def _wait(self) -> None:
        if self._accelerator:
            torch.accelerator.synchronize()


def measure_model(model: Any, meter: Meter, report: Callable[[str, dict[str, float]], None]) -> None:
    """All works of one model."""
    records, cfg = load_counterfact("sample"), model.cfg
    fact, layer = records[0].request.fact, default_layer(model)
    block = block_weights(model)

    def trace(component: str, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        causal_trace(model, fact, component, corruption=NOISE, generator=generator, progress=False, **options)

    def maps() -> None:
        for component in COMPONENTS:
            trace(component)

    least = [map_flops(model, fact, component) for component in COMPONENTS]
    trace("resid_post")  # what is compiled or loaded at first is no part of the cost
    report("three maps", meter.measure(maps, sum(least)))
    trace_plainly = partial(trace, "mlp_out", method="plain", max_batch_tokens=PLAIN_BATCH)
    report("one map, plain", meter.measure(trace_plainly, least[1], kernels=False))

    ids = torch.randint(100, 40_000, (-(-max(meter.tokens, 2 * cfg.d_mlp) // 128), 128), generator=torch.Generator())
    count, moments = ids.numel(), KeyMoments.zeros(model, [layer])

    def statistics() -> None:
        moments.count = moments.texts = 0
        moments.second[layer].zero_()
        for _ in stream_moments(model, moments, list(ids), max_batch_tokens=4096, progress=False):
            pass

    with borrowed(model):
        forward = meter.measure(
            lambda: forward_seconds(model, [layer], _batches(list(ids), 4096)), 2.0 * count * layer * block
        )
        found = meter.measure(statistics, count * (2.0 * layer * block + cfg.d_mlp**2))
        covariance = covariance_of(model, moments, layer, "random tokens")
    report("forward to the layer", {**forward, "tokens_per_second": count / forward["wall"]})
    report("key statistics", {**found, "tokens_per_second": count / found["wall"]})

    rome = Rome(covariance, CONTEXTS)
    requests = [record.request for record in records[: meter.together]]
    needed = [edit_flops(model, layer, request.fact) for request in requests]
    report(
        "first edit, with the Cholesky factor",
        meter.measure(lambda: rome(model, requests[0]), needed[0], kernels=False),
    )
    report("one edit", meter.measure(lambda: rome(model, requests[0]), needed[0]))
    together = meter.measure(lambda: rome.each(model, requests), sum(needed), kernels=False)
    report(f"{meter.together} edits together", together)

    starts = [encode(model, record.request.fact.prompt) for record in records for _ in range(2)][: meter.texts]

    def texts() -> None:
        generators = [torch.Generator().manual_seed(place) for place in range(meter.texts)]
        generate_to_length(model, starts, LENGTH, generator=generators, top_k=5)

    least_texts = 2.0 * meter.texts * (LENGTH - 1) * (cfg.n_layers * block + cfg.d_model * cfg.d_vocab)
    found = meter.measure(texts, least_texts, kernels=False)
    report("texts", {**found, "texts_per_second": meter.texts / found["wall"]})


def map_flops(model: Any, fact: Fact, component: str) -> float:
    """FLOP that one map needs."""
    with borrowed(model), torch.no_grad():
        runs = Runs(model, encode_fact(model, fact), NOISE, torch.Generator().manual_seed(0))
    return least_of_map(model, runs, Patch.make(model, component, 1 if component == "resid_post" else 10, "released"))


def edit_flops(model: Any, layer: int, fact: Fact) -> float:
    """FLOP that an edit needs which takes all evaluations, as with random weights."""
    rewrite = Rewrite.make(model, fact, CONTEXTS, RELEASED.kl_template)
    return least_of_edit(model, layer, rewrite, RELEASED.max_evaluations)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="default: the accelerator, if there is one")
    parser.add_argument("--models", nargs="+", type=int, choices=range(3), default=[0, 1, 2], help="some of the three")
    parser.add_argument("--proxy", action="store_true", help="a deep thin model on one CPU thread")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), nargs="+", default=["hooked", "bridge"])
    parser.add_argument("--layers", type=int, default=48, help="of the deep thin model")
    parser.add_argument("--records", type=int, default=20, help="that are evaluated, with --proxy")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS, help="with --proxy")
    options = parser.parse_args()
    logging.getLogger("tl_rome").setLevel(logging.ERROR)
    started, report = time.perf_counter(), {}
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(options.device or found or "cpu")
    if options.proxy:
        torch.set_num_threads(1)
        for model_class in options.model_class:
            report |= measure_proxy(model_class, options.layers, options.records, options.works)
        print(json.dumps({**report, "layers": options.layers, "peak_memory_mb": peak_memory_mb()}))
        return
    for name, model_class, dtype in [(SMALL if device.type == "cpu" else FULL)[each] for each in options.models]:
        if model_class not in options.model_class:
            continue
        model = random_model(name, model_class, getattr(torch, dtype), device)
        meter, title = Meter(device, getattr(torch, dtype)), f"{name}, {model_class}, {dtype}"

        def note(work: str, figures: dict[str, float], title: str = title) -> None:
            report[f"{work}: {title}"] = rounded = {key: float(f"{value:.4g}") for key, value in figures.items()}
            print(f"{work}: {title}: {rounded}", flush=True)

        measure_model(model, meter, note)
        report[f"flops_per_second: {title}"] = meter.rate
        del model
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    seconds = round(time.perf_counter() - started)
    print(json.dumps({**report, "device": name, "seconds": seconds, "float32": torch.get_float32_matmul_precision()}))


if __name__ == "__main__":
    main()
