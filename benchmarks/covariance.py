"""Tokens per second of estimating key statistics, against the model's own forward pass to the same layer.

Both run over the same texts in this one process, in CPU-seconds. The model's own pass takes the texts that the estimate
takes, in the same batches, and keeps nothing; the second figure gives the model its texts in the order they come.

The last line is one JSON object.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tl_rome
from tl_rome.editors.covariance.moments import KeyMoments, _batches, stream_moments
from tl_rome.running.forward import read
from tl_rome.running.matrices import key_hook
from tl_rome.tokens import encode, pad


@torch.no_grad()
def forward_seconds(model: Any, layers: list[int], batches: Iterable[list[Tensor]]) -> float:
    """CPU-seconds of reading the keys of all batches without using them."""
    started = time.process_time()
    for batch in batches:
        read(model, pad(batch).tokens, [key_hook(layer) for layer in layers])
    return time.process_time() - started


def in_order(texts: list[Tensor], max_batch_tokens: int) -> Iterable[list[Tensor]]:
    """Batches of texts in their own order."""
    batch: list[Tensor] = []
    for tokens in texts:
        if batch and max(len(tokens), *map(len, batch)) * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(tokens)
    yield batch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="text file, one text a line")
    parser.add_argument("--model", default="smollm2-135m", help="any name or folder that load_model takes")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), help="default: as load_model chooses")
    parser.add_argument("--layers", type=int, nargs="+", default=[5])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = tl_rome.load_model(options.model, model_class=options.model_class, progress=False)
    texts, count = [], 0
    for line in options.texts.read_text("utf-8").splitlines():
        if line.strip() and count < options.tokens:
            texts.append(encode(model, line, truncate=True))
            count += len(texts[-1])
    forward_seconds(model, options.layers, [texts[:2]])
    moments = KeyMoments.zeros(model, options.layers)
    started = time.process_time()
    for _ in stream_moments(model, moments, texts, max_batch_tokens=options.max_batch_tokens, progress=False):
        pass
    spent = time.process_time() - started
    own = forward_seconds(model, options.layers, _batches(texts, options.max_batch_tokens))
    unsorted = forward_seconds(model, options.layers, in_order(texts, options.max_batch_tokens))
    report = {
        "cpu_seconds": round(spent, 2),
        "plain_cpu_seconds": round(unsorted, 2),
        "forward_cpu_seconds": round(own, 2),
        "tokens": count,
        "tokens_per_second": round(count / spent, 1),
        "share_of_forward_speed": round(own / spent, 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "layers": options.layers,
        "model": options.model,
        "model_class": options.model_class or "default",
    }
    print(f"estimate {spent:.1f}, forward passes alone {own:.1f}, forward passes of texts as they come {unsorted:.1f}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
