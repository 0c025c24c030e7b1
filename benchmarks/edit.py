"""Cost of one ROME edit: against full forward and backward passes, and against the arithmetic minimum.

Both are measured in this one process, in CPU-seconds. The plain twin runs every prompt whole, through all layers to the
logits of all positions, and back from there to the edited layer, as the authors' code does; some of its steps are timed
and extrapolated to the evaluations that the edit took. The minimum counts the multiply-adds of the weights alone: one
pass over all tokens, then the layers above the edit on the positions from the subject's last token on and the logits
that are scored, forward and (but for the last evaluation) backward, at the rate of a large matrix product.

`--model gpt2-xl-random` builds a GPT-2 XL with random weights, on which a few steps of v* are timed instead of a whole
edit. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from least import least_of_edit
from machine import load, peak_flops_per_second, peak_memory_mb

from tl_rome.editors import RELEASED, KeyCovariance, Rome, default_layer, sample_contexts
from tl_rome.editors.rank_one.batch import Rewrite, RewriteBatch
from tl_rome.editors.rank_one.presets import RomeConfig
from tl_rome.editors.rank_one.value import optimise_value
from tl_rome.facts import EditRequest
from tl_rome.running.blocks import frozen
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import value_hook
from tl_rome.tokens import pad

REQUESTS = (
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
    EditRequest("{} was developed by", "iPhone 5", "Microsoft"),
)


def plain_step(model: Any, layer: int, rewrite: Rewrite, repeats: int) -> tuple[float, float]:
    """CPU-seconds of one full forward and backward pass, and the first loss."""
    rows, contexts = rewrite.rows, len(rewrite.prompts)
    batch = pad([tokens for tokens, _ in rows])
    last = torch.tensor([position for _, position in rows])
    with frozen(model):
        delta = torch.zeros(model.cfg.d_model, requires_grad=True)

        def add(output: torch.Tensor) -> torch.Tensor:
            at = torch.zeros(*output.shape[:2], 1)
            at[torch.arange(len(rows)), last] = 1
            return output + at * delta

        losses: list[float] = []
        started = time.process_time()
        for _ in range(repeats):
            with hooked(model, [value_hook(model, layer, add)]):
                logprobs = model(batch.tokens).log_softmax(-1)
            size = len(rewrite.targets[0])
            places = batch.last[:contexts, None] - size + 1 + torch.arange(size)
            loss = -logprobs[torch.arange(contexts)[:, None], places, rewrite.targets[0]].mean()
            loss.backward()
            losses.append(loss.item())
    return (time.process_time() - started) / repeats, losses[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="what load_model takes, or gpt2-xl-random")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), help="default: as load_model chooses")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=RELEASED.max_evaluations, help="evaluations of the loss, at most")
    parser.add_argument("--plain-steps", type=int, default=2, help="steps of the plain twin that are timed")
    parser.add_argument("--records", type=Path, help="COUNTERFACT records (JSON) to take requests from")
    parser.add_argument("--count", type=int, default=3, help="number of requests")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, options.model_class)
    config: RomeConfig = replace(RELEASED, max_evaluations=options.steps)
    layer = default_layer(model)
    contexts = sample_contexts(model, config, generator=torch.Generator().manual_seed(0))
    covariance = KeyCovariance.shipped(model)
    rome = Rome(covariance, contexts, config) if covariance is not None and covariance.layer == layer else None
    requests = list(REQUESTS)
    if options.records is not None:
        rewrites = [record["requested_rewrite"] for record in json.loads(options.records.read_text("utf-8"))]
        requests = [EditRequest(r["prompt"], r["subject"], r["target_new"]["str"]) for r in rewrites]
    print(f"{'whole edits' if rome else 'v* alone'}, layer {layer}, {len(contexts)} contexts")
    loaded, rows = peak_memory_mb(), []
    for request in requests[: options.count]:
        rewrite = Rewrite.make(model, request.fact, contexts, config.kl_template)
        started = time.process_time()
        if rome is not None:
            losses = rome(model, request).provenance["losses"]
        else:
            losses = optimise_value(model, layer, request.fact, contexts, config).losses
        seconds, least = time.process_time() - started, least_of_edit(model, layer, rewrite, len(losses))
        rows.append((request, rewrite, seconds, least, losses, peak_flops_per_second()))
    peak, report = peak_memory_mb(), []
    for request, rewrite, seconds, least, losses, rate in rows:
        step, loss = plain_step(model, layer, rewrite, options.plain_steps)
        plain = step * (len(losses) - 0.5)  # the last evaluation has no backward pass
        report.append((seconds, plain, plain / seconds, least, rate, seconds / (least / rate)))
        print(
            f"{request.fact.prompt!r}: {seconds:.1f}, plain {plain:.1f} CPU-seconds, {len(losses)} evaluations, "
            f"least {least / 1e9:.0f} GFLOP, {RewriteBatch.make(model, [rewrite]).tokens.shape[0]} rows; "
            f"first NLL {losses[0]['nll']:.5f}, plain {loss:.5f}"
        )
    plain_peak = peak_memory_mb()
    print(f"peak memory: {peak} MB, plain {plain_peak} MB or less; {loaded} MB with the model loaded")
    seconds, plain, speedup, least, rate, ratio = (statistics.median(column) for column in zip(*report, strict=True))
    summary = {
        "cpu_seconds": round(seconds, 2),
        "plain_cpu_seconds": round(plain, 2),
        "speedup": round(speedup, 2),
        "minimum_flops": least,
        "peak_flops_per_second": rate,
        "ratio_to_minimum": round(ratio, 2),
        "peak_memory_mb": peak,
        "model": options.model,
        "model_class": options.model_class or "default",
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
