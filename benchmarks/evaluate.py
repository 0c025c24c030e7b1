"""Cost of evaluating one record: ROME edit, scores before and after it, texts after it; against a plain twin.

Both are measured in this one process, in CPU-seconds per record. The plain twin works as the authors' code does: the
edit by full passes (see `edit.py`), extrapolated from a few of its steps; each prompt with each target run whole, to
the logits of all positions, one by one, with the weights edited; and one record's texts at a time, with a key-value
cache. The minimum counts the multiply-adds of the weights alone: those of the edit, every token that is scored or
generated once, and the logits that are read, at the rate of a large matrix product.

Texts of the unedited model are made once per data set, not per edit, and are timed separately. The last line is one
JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from edit import plain_step
from least import block_weights, least_of_edit
from machine import load, peak_flops_per_second, peak_memory_mb

from tl_rome.counterfact import CounterFactRecord, EvaluationConfig, load_counterfact
from tl_rome.counterfact.evaluation.measure import MeasuredRecord, generate, measure
from tl_rome.editors import Rome
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.editors.protocol import make_edits
from tl_rome.editors.rank_one.batch import Rewrite
from tl_rome.tokens import encode, encode_target

SCORES = EvaluationConfig(generation_length=0, attribute=True, kl=False, essence_template=None)
"""All 23 prompts with both targets, and nothing else."""
TEXTS = EvaluationConfig()
GROUPS = ("rewrite", "paraphrase", "neighborhood", "attribute")


class Clock:
    """CPU-seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, function: Callable[[], Any]) -> Any:
        """Call a function and add the CPU-seconds that it took."""
        started = time.process_time()
        result = function()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started
        return result

    def shown(self, records: int) -> str:
        """CPU-seconds of each name per record."""
        each = {name: seconds / records for name, seconds in self.seconds.items()}
        return ", ".join(f"{name} {seconds:.2f}" for name, seconds in each.items())


def cases(model: Any, record: CounterFactRecord) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens of each prompt with those of each target, o* and o^c."""
    targets = (record.requested_rewrite.target_new.str, record.requested_rewrite.target_true.str)
    return [
        (encode(model, prompt), encode_target(model, target, prompt))
        for group in GROUPS
        for prompt in record.prompts(group)
        for target in targets
    ]


@torch.no_grad()
def plain_scores(model: Any, record: CounterFactRecord) -> list[float]:
    """Log-probability of each target, from whole runs."""
    found = []
    for start, end in cases(model, record):
        logprobs = model(torch.cat([start, end])[None])[0].log_softmax(-1)
        found.append(logprobs[len(start) - 1 : -1].gather(1, end[:, None]).sum().item())
    return found


def batched_scores(measured: MeasuredRecord) -> list[float]:
    """The same figures in the same order."""
    groups = [getattr(measured.measurement, group) for group in GROUPS]
    return [x for each in groups for pair in zip(each.logprob_new, each.logprob_true, strict=True) for x in pair]


def minimum_flops(model: Any, record: CounterFactRecord, edit: float) -> float:
    """Floating-point operations that an exact result needs, without attention scores and norms."""
    cfg = model.cfg
    block = cfg.n_layers * block_weights(model)
    logits = cfg.d_model * cfg.d_vocab
    scored = cases(model, record)
    prompts = sum(len(start) for start, _ in scored[::2])
    longer = sum(len(end) - 1 for _, end in scored)
    read = sum(len(end) for _, end in scored)
    starts = [len(encode(model, prompt)) for prompt in record.generation_prompts]
    written = sum(TEXTS.generation_length - start for start in starts)
    texts = len(starts) * (TEXTS.generation_length - 1) * block + written * logits
    return edit + 2.0 * (2 * ((prompts + longer) * block + read * logits) + texts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="what load_model takes")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), help="default: as load_model chooses")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", default="sample", help="what load_counterfact takes")
    parser.add_argument("--count", type=int, default=8, help="records")
    parser.add_argument("--batch-size", type=int, default=8, help="records edited and measured at once")
    parser.add_argument("--plain-records", type=int, default=1, help="records of the plain twin")
    parser.add_argument("--plain-steps", type=int, default=2, help="steps of v* of each that are timed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, options.model_class)
    source = Path(options.records)
    records = load_counterfact(source if source.exists() else options.records)[: options.count]
    rome, clock, plain = Rome.prepare(model, progress=False), Clock(), Clock()
    edits, after, texts, started = [], [], [], time.perf_counter()
    for first in range(0, len(records), options.batch_size):
        batch = records[first : first + options.batch_size]
        clock.time("scores before", lambda: measure(model, batch, SCORES))  # noqa: B023
        made = clock.time("edit", lambda: make_edits(model, [record.request for record in batch], rome))  # noqa: B023
        virtual = VirtualEdits(model, made)
        after += clock.time("scores after", lambda: measure(model, batch, SCORES, edits=virtual))  # noqa: B023
        texts += clock.time("texts after", lambda: generate(model, batch, TEXTS, edits=virtual))  # noqa: B023
        edits += made
    wall, peak, rate = (time.perf_counter() - started) / len(records), peak_memory_mb(), peak_flops_per_second()
    print(
        f"{len(records)} records, batches of {options.batch_size}; CPU-seconds per record: {clock.shown(len(records))}"
    )
    unedited = Clock()
    unedited.time("texts before", lambda: generate(model, records[: options.batch_size], TEXTS))
    print(f"once per data set: {unedited.shown(min(options.batch_size, len(records)))}")
    least, worst, same, twins = [], 0.0, 0, options.plain_records
    for place, (record, edit, measured, text) in enumerate(zip(records, edits, after, texts, strict=True)):
        rewrite = Rewrite.make(model, record.request.fact, rome.contexts, rome.config.kl_template)
        evaluations = len(edit.receipt.losses)
        least.append(minimum_flops(model, record, least_of_edit(model, rome.layer, rewrite, evaluations)))
        if place >= twins:
            continue
        step, _ = plain_step(model, rome.layer, rewrite, options.plain_steps)
        plain.seconds["edit"] = plain.seconds.get("edit", 0.0) + step * (evaluations - 0.5)
        plain.time("scores before", lambda: plain_scores(model, record))  # noqa: B023
        with edit.applied(model):
            scores = plain.time("scores after", lambda: plain_scores(model, record))  # noqa: B023
            (alone,) = plain.time("texts after", lambda: generate(model, [record], TEXTS))  # noqa: B023
        pairs = zip(scores, batched_scores(measured), strict=True)
        worst = max(worst, *(abs(one - other) for one, other in pairs))
        same += sum(one == other for one, other in zip(alone, text, strict=True))
    print(f"plain, {twins} records: {plain.shown(twins)}")
    print(f"largest difference of a log-probability between the two: {worst:.1e}; {same} of their texts are equal")
    seconds, plain_seconds = sum(clock.seconds.values()) / len(records), sum(plain.seconds.values()) / twins
    minimum = sum(least) / len(least)
    summary = {
        "cpu_seconds": round(seconds, 2),
        "plain_cpu_seconds": round(plain_seconds, 2),
        "speedup": round(plain_seconds / seconds, 2),
        "minimum_flops": minimum,
        "peak_flops_per_second": rate,
        "ratio_to_minimum": round(seconds / (minimum / rate), 2),
        "peak_memory_mb": peak,
        "records_per_hour": round(3600 / wall),
        "model": options.model,
        "model_class": options.model_class or "default",
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
