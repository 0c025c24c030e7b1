"""Cost of the three tracing maps: the sweep against one full forward pass per cell, and against the arithmetic minimum.

Both are measured in this one process, in CPU-seconds. Every plain cell costs the same, so the plain twin is timed on
some cells and extrapolated to all. The minimum counts the multiply-adds of the weights alone, for the cells that can
differ from the corrupted run, at the layers and positions that can differ, at the rate of a large matrix product.

The last line is one JSON object.
"""

import argparse
import json
import resource
import time
from typing import Any

import torch

import tl_rome
from tl_rome.patching.corruption import GaussianNoise, noise_scale
from tl_rome.patching.plain import trace_plain
from tl_rome.patching.runs import Runs, TargetProbability
from tl_rome.patching.sweep import trace_sweep
from tl_rome.patching.windows import layer_window
from tl_rome.tokens import encode_fact

COMPONENTS = {"resid_post": 1, "mlp_out": 10, "attn_out": 10}
"""Component and width of its windows."""


def peak_flops_per_second(size: int = 2048, repeats: int = 4) -> float:
    """Rate of a large float32 matrix product, per CPU-second."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    left @ right
    started = time.process_time()
    for _ in range(repeats):
        left @ right
    return repeats * 2 * size**3 / (time.process_time() - started)


def minimum_flops(model: Any, runs: Runs, windows: dict[str, list[range]]) -> float:
    """Floating-point operations that exactness needs, attention scores and norms left out."""
    cfg, n_pos = model.cfg, len(runs.prompt.tokens)
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.ndim > 1)
    total = 0
    for component, cells in windows.items():
        for cell in cells:
            layers = cfg.n_layers - cell.start - (component == "resid_post")
            for position in range(runs.span.start, n_pos):
                total += runs.samples * 2 * (layers * (n_pos - position) * block + cfg.d_model * cfg.d_vocab)
    return float(total)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="any name or folder that load_model takes")
    parser.add_argument("--kind", choices=("hooked", "bridge"), help="default: as load_model chooses")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", default="In Kingdom of Bulgaria, the language spoken is")
    parser.add_argument("--subject", default="Kingdom of Bulgaria")
    parser.add_argument("--cells", type=int, default=9, help="cells on which the plain twin is timed, per map")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = tl_rome.load_model(options.model, kind=options.kind, progress=False)
    layers = range(model.cfg.n_layers)
    windows = {
        name: [layer_window(layer, len(layers), width) for layer in layers] for name, width in COMPONENTS.items()
    }
    with torch.no_grad():
        prompt = encode_fact(model, tl_rome.Fact.from_prompt(options.prompt, options.subject))
        runs = Runs(model, prompt, GaussianNoise(noise_scale(model)), torch.Generator().manual_seed(0))
        metric = TargetProbability(int(runs.clean_logits[0].argmax()))
        n_pos, spent, plain, worst = len(prompt.tokens), 0.0, 0.0, 0.0
        for name, cells in windows.items():
            started = time.process_time()
            swept = trace_sweep(runs, name, cells, metric, max_rows=512)
            seconds = time.process_time() - started
            chosen = list(layers)[:: max(1, len(layers) * n_pos // options.cells)] or [0]
            started = time.process_time()
            twin = trace_plain(runs, name, [cells[layer] for layer in chosen], metric, max_rows=runs.samples)
            each = (time.process_time() - started) / (len(chosen) * n_pos)
            worst = max(worst, (twin - swept[chosen]).abs().max().item())
            spent, plain = spent + seconds, plain + each * len(layers) * n_pos
            print(f"{name}: sweep {seconds:.1f}, plain {each * len(layers) * n_pos:.1f} CPU-seconds "
                  f"(from {len(chosen) * n_pos} of {len(layers) * n_pos} cells)")  # fmt: skip
    least, rate = minimum_flops(model, runs, windows), peak_flops_per_second()
    print(f"largest difference of a score between the two: {worst:.1e}")
    report = {
        "cpu_seconds": round(spent, 2),
        "plain_cpu_seconds": round(plain, 2),
        "speedup": round(plain / spent, 2),
        "minimum_flops": least,
        "peak_flops_per_second": rate,
        "ratio_to_minimum": round(spent / (least / rate), 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "model": options.model,
        "kind": options.kind or "default",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
