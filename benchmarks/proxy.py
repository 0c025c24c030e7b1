"""What tracing, editing and evaluating cost beside the block calls that they are made of, see `bare`.

The model is that of `deep_thin`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bare import Bare
from deep_thin import deep_thin, records

from tl_rome.counterfact import EvaluationConfig, evaluate
from tl_rome.editors import Rome, estimate_covariance
from tl_rome.patching import GaussianNoise, causal_trace

WORKS = ("maps", "edit", "evaluation")
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


def measure_proxy(model_class: str, layers: int, count: int, wanted: Sequence[str]) -> dict[str, dict[str, float]]:
    """CPU-seconds of each work, of its block calls by themselves, and the ratio of the two, printed as they come."""
    model, report = deep_thin(model_class, layers), {}
    bare = Bare(model, deep_thin(model_class, layers))
    for name, work in works(model, count).items():
        if name in wanted:
            work()  # what is imported, compiled or cached at first is no part of the cost
            found = bare.ratio(work)
            report[f"{name}, {model_class}"] = {key: round(value, 3) for key, value in found.items()}
            print(
                f"{name}, {model_class}: {found['seconds']:.2f} CPU-seconds, {found['calls']} block calls by "
                f"themselves {found['bare']:.2f}, ratio {found['ratio']:.2f}",
                flush=True,
            )
    return report
