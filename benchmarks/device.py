"""What tracing, editing and evaluating cost beside the block calls that they are made of; see `bare` and `deep_thin`.

`--proxy` measures that on one CPU thread, for both classes. The last line is one JSON object.
"""

import argparse
import json
import logging
from collections.abc import Callable
from typing import Any

import torch
from bare import Bare
from deep_thin import LAYERS, deep_thin, records
from machine import peak_memory_mb

from tl_rome.counterfact import EvaluationConfig, evaluate
from tl_rome.editors import Rome, estimate_covariance
from tl_rome.patching import GaussianNoise, causal_trace

COMPONENTS = ("resid_post", "mlp_out", "attn_out")
CONTEXTS = ("", *(f"Number {number} is what he said. " for number in range(20)))
EVALUATED = EvaluationConfig(generation_length=60, texts=2)


def works(model: Any, count: int) -> dict[str, Callable[[], Any]]:
    """The operations that are measured, by name."""
    given = records(count)
    fact, layer = given[0].request.fact, model.cfg.n_layers // 3
    noise = GaussianNoise(0.1, 10)

    def maps() -> None:
        for component in COMPONENTS:
            generator = torch.Generator().manual_seed(0)
            causal_trace(model, fact, component, corruption=noise, generator=generator, progress=False)

    texts = [prompt for record in records(63) for prompt in record.neighborhood_prompts]
    rome = Rome(estimate_covariance(model, layer, texts, source="shipped prompts", progress=False), CONTEXTS)
    return {
        "maps": maps,
        "edit": lambda: rome(model, given[0].request),
        "evaluation": lambda: evaluate(model, given, rome, config=EVALUATED, progress=False),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", action="store_true", help="a deep thin model on one CPU thread")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), nargs="+", default=["hooked", "bridge"])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--records", type=int, default=20)
    parser.add_argument("--works", nargs="+", choices=("maps", "edit", "evaluation"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("tl_rome").setLevel(logging.ERROR)
    report: dict[str, Any] = {}
    for model_class in options.model_class:
        model = deep_thin(model_class, options.layers)
        bare = Bare(model, deep_thin(model_class, options.layers))
        for name, work in works(model, options.records).items():
            if options.works is None or name in options.works:
                work()  # what is imported, compiled or cached at first is no part of the cost
                found = bare.ratio(work)
                report[f"{name}, {model_class}"] = found
                print(
                    f"{name}, {model_class}: {found['seconds']:.2f} CPU-seconds, {found['calls']} block calls by "
                    f"themselves {found['bare']:.2f}, ratio {found['ratio']:.2f}",
                    flush=True,
                )
    rounded = {name: {key: round(value, 3) for key, value in found.items()} for name, found in report.items()}
    print(json.dumps({**rounded, "layers": options.layers, "peak_memory_mb": peak_memory_mb()}))


if __name__ == "__main__":
    main()
