"""Cost of the three tracing maps: `incremental` against one full run per cell, and against the arithmetic minimum.

Both are measured in this one process, in CPU-seconds. Every plain cell costs the same, so the plain twin is timed on
some cells and extrapolated to all; with `--every` it too is timed on a part of the cells, for large models. The
minimum counts the multiply-adds of the weights alone, for the cells that can differ from the corrupted run, at the
layers and positions that can differ, at the rate of a large matrix product. It counts clipped windows and the last
layer in full, which tracing does not.

`--model gpt2-xl-random` builds a GPT-2 XL with random weights. The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from least import least_of_map
from machine import load, peak_flops_per_second, peak_memory_mb

import tl_rome
from tl_rome.patching.config import TraceConfig
from tl_rome.patching.corruption import GaussianNoise, noise_scale
from tl_rome.patching.methods.incremental import needed_names, trace_incremental
from tl_rome.patching.methods.plain import trace_plain
from tl_rome.patching.patch import Patch
from tl_rome.patching.runs import Runs
from tl_rome.patching.traced_prompt import TracedPrompt
from tl_rome.tokens import encode_fact

COMPONENTS = {"resid_post": 1, "mlp_out": 10, "attn_out": 10}
"""Component and width of its windows."""


def timed_map(model: Any, runs: Runs, component: str, layers: Sequence[int], cells: int, bound: int) -> dict[str, Any]:
    """CPU-seconds of one map over the windows of some layers, and of its plain twin, extrapolated from some cells."""
    whole = Patch.make(model, component, COMPONENTS[component], "released")
    patch = replace(whole, windows=tuple(whole.windows[layer] for layer in layers))
    n_pos = len(runs.prompt.tokens)
    started = time.process_time()
    traced = TracedPrompt.record(runs, [TraceConfig()], needed_names(model, patch), attended=True)
    found = trace_incremental([traced], patch, max_batch_tokens=bound)[0][0]
    seconds = time.process_time() - started
    few = [index * len(layers) // max(1, cells // n_pos) for index in range(max(1, cells // n_pos))]
    sample = replace(patch, windows=tuple(patch.windows[index] for index in few))
    started = time.process_time()
    twin = trace_plain(traced, sample, max_batch_tokens=runs.samples * n_pos)[0]
    each = (time.process_time() - started) / twin.numel()
    return {
        "seconds": seconds,
        "plain": each * len(layers) * n_pos,
        "least": least_of_map(model, runs, patch),
        "worst": (twin - found[few]).abs().max().item(),
        "timed": f"plain on {twin.numel()} of {len(layers) * n_pos} cells",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="what load_model takes, or gpt2-xl-random")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), help="default: as load_model chooses")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", default="In Kingdom of Bulgaria, the language spoken is")
    parser.add_argument("--subject", default="Kingdom of Bulgaria")
    parser.add_argument("--cells", type=int, default=9, help="cells on which the plain twin is timed, per map")
    parser.add_argument("--every", type=int, default=1, help="time tracing on the windows of every n-th layer only")
    parser.add_argument("--components", nargs="+", choices=COMPONENTS, default=list(COMPONENTS))
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, options.model_class)
    layers = range(0, model.cfg.n_layers, options.every)
    part = model.cfg.n_layers / len(layers)
    maps = []
    with torch.no_grad():
        prompt = encode_fact(model, tl_rome.Fact.from_prompt(options.prompt, options.subject))
        noise = GaussianNoise(noise_scale(model), options.samples)
        runs = Runs(model, prompt, noise, torch.Generator().manual_seed(0))
        for name in options.components:
            found = timed_map(model, runs, name, layers, options.cells, options.max_batch_tokens)
            maps.append(found)
            print(
                f"{name}: incremental {found['seconds'] * part:.1f}, plain {found['plain'] * part:.1f} CPU-seconds "
                f"({found['timed']}, windows of {len(layers)} of {model.cfg.n_layers} layers)",
                flush=True,
            )
    total = {name: sum(found[name] for found in maps) for name in ("seconds", "plain", "least")}
    rate = peak_flops_per_second()
    print(f"largest difference of a score between the two: {max(found['worst'] for found in maps):.1e}")
    report = {
        "cpu_seconds": round(total["seconds"] * part, 2),
        "plain_cpu_seconds": round(total["plain"] * part, 2),
        "speedup": round(total["plain"] / total["seconds"], 2),
        "minimum_flops": total["least"] * part,
        "peak_flops_per_second": rate,
        "ratio_to_minimum": round(total["seconds"] / (total["least"] / rate), 2),
        "peak_memory_mb": peak_memory_mb(),
        "model": options.model,
        "model_class": options.model_class or "default",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
