"""Cost of a step of training MEND or KE: against the plain way, and against the arithmetic minimum.

All are measured in this one process, in CPU-seconds. A step is the difference between trainings of a few steps and of
one, over the number of further steps, so that what is done once (streams of the texts below the edited blocks,
warm-up, validation) does not count. The plain twin runs every text of every edit whole and by itself, gets the
gradients of whole matrices, adds dense changes and goes back through all of it; the network's own work is left out
there. The minimum counts the multiply-adds of the weights alone: the edited blocks over all texts and the logits that
are compared, forward and backward, and the network over all tokens, at the rate of a large matrix product.

The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from least import block_weights
from machine import load, peak_flops_per_second, peak_memory_mb
from torch.nn.functional import cross_entropy, kl_div

from tl_rome import counterfact
from tl_rome.editors import KE_CF, MEND_CF, locality_texts, sampled_texts, split_examples, train_ke, train_mend
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.editors.trained.passes.matrices import choose_matrices
from tl_rome.running.blocks import frozen
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import MlpMatrix, input_hook, output_hook
from tl_rome.tokens import encode, encode_target


def tokens_of(model: Any, prompt: str, example: TrainingExample) -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt with the target but for its last token, and the target."""
    target = encode_target(model, example.target, prompt, example.joiner)
    return torch.cat([encode(model, prompt), target[:-1]]), target


def target_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the target behind the prompt."""
    return cross_entropy(logits[0, -len(target) :], target)


def plain_step(model: Any, examples: Sequence[TrainingExample], locality: Sequence[str]) -> float:
    """CPU-seconds of one step the plain way."""
    matrices = choose_matrices(model, None)
    started = time.process_time()
    for example, text in zip(examples, locality, strict=True):
        tokens, target = tokens_of(model, example.prompt, example)
        changes = {matrix: torch.zeros_like(matrix.weight(model), requires_grad=True) for matrix in matrices}
        with frozen(model), hooked(model, added(model, changes)):
            loss = target_loss(model(tokens[None]), target)
            gradients = torch.autograd.grad(loss, list(changes.values()))
        step = {matrix: (-1e-4 * found).requires_grad_() for matrix, found in zip(changes, gradients, strict=True)}
        outer, target = tokens_of(model, example.outer_prompt, example)
        other = encode(model, text)[None]
        with torch.no_grad():
            before = model(other).log_softmax(-1)
        with frozen(model), hooked(model, added(model, step)):
            loss = 0.1 * target_loss(model(outer[None]), target)
            after = model(other).log_softmax(-1)
            (loss + kl_div(after, before, log_target=True, reduction="sum") / other.shape[1]).backward()
    return time.process_time() - started


def added(model: Any, changes: dict[MlpMatrix, Any]) -> list[Any]:
    """Hooks that add x @ change to each matrix's output."""
    hooks: list[Any] = []
    for matrix, change in changes.items():
        inputs: list[torch.Tensor] = []

        def add(output: torch.Tensor, inputs: Any = inputs, change: Any = change) -> torch.Tensor:
            return output + inputs.pop() @ change

        hooks += [input_hook(model, matrix, inputs.append), output_hook(model, matrix, add)]
    return hooks


def minimum_flops(model: Any, parameters: int, examples: Sequence[TrainingExample], locality: Sequence[str]) -> float:
    """Floating-point operations of an exact step, without attention scores, norms and the optimiser."""
    cfg, layers = model.cfg, len({matrix.layer for matrix in choose_matrices(model, None)})
    block = layers * block_weights(model)
    head, least = cfg.d_model * cfg.d_vocab, 0.0
    for example, text in zip(examples, locality, strict=True):
        inner, target = tokens_of(model, example.prompt, example)
        outer, other = tokens_of(model, example.outer_prompt, example)[0], len(encode(model, text))
        least += 2 * (len(inner) + len(outer)) * block + 3 * other * block  # forward and back; unedited forward alone
        least += 4 * len(target) * head + 3 * other * head
        least += 3 * len(inner) * parameters  # of the network: forward, back to its inputs and to its parameters
    return 2 * least


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("mend", "ke"), nargs="?", default="mend")
    parser.add_argument("--model", default="smollm2-135m", help="what load_model takes")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), help="default: as load_model chooses")
    parser.add_argument("--rank", type=int, default=256, help="of MEND's layers")
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, generator = load(options.model, options.model_class), torch.Generator().manual_seed(0)
    records = counterfact.training_records(counterfact.load_sample_relations(), 80, generator=generator)
    made = counterfact.record_examples(records, generator=generator)
    parts = split_examples(made, train=60, validation=10, check=0, generator=generator)
    texts = sampled_texts(model, 30, generator=generator)
    locality = locality_texts(model, texts, 60, generator=generator, more_words_than=0)

    def training(steps: int) -> tuple[float, Any]:
        given = {"validation": parts.validation, "generator": torch.Generator().manual_seed(0), "progress": False}
        often = {"max_steps": steps, "validate_every": 1000}
        started = time.process_time()
        if options.method == "mend":
            config = replace(MEND_CF, rank=options.rank, **often)
            editor: Any = train_mend(model, parts.train, locality, config=config, **given)
        else:
            editor = train_ke(model, parts.train, locality, config=replace(KE_CF, **often), **given)
        return time.process_time() - started, editor

    once, editor = training(1)
    step = (training(1 + options.steps)[0] - once) / options.steps
    peak, size = peak_memory_mb(), editor.config.batch_size
    batch = parts.train[:size], locality[:size]
    plain = plain_step(model, *batch)
    parameters = sum(p.numel() for p in editor.network.parameters())
    least, rate = minimum_flops(model, parameters, *batch), peak_flops_per_second()
    summary = {
        "method": editor.config.preset,
        "seconds_per_step": round(step, 3),
        "edits_per_step": size,
        "plain_seconds_per_step": round(plain, 3),
        "speedup": round(plain / step, 2),
        "minimum_flops": least,
        "peak_flops_per_second": rate,
        "ratio_to_minimum": round(step / (least / rate), 2),
        "network_parameters": parameters,
        "once_and_one_step_seconds": round(once, 2),
        "peak_memory_mb": peak,
        "model": options.model,
        "model_class": options.model_class or "default",
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
