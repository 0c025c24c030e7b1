"""What lower precision does to traces and edits of SmolLM2: differences to stored results of the authors' float32 code.

Four kinds of arithmetic: float32; float32 with `torch.set_float32_matmul_precision("medium")`, whose effect depends on
the processor; TF32 as a GPU has it, emulated: the inputs of every matrix product are rounded to 10 bits of mantissa,
products and sums are float32; and a bfloat16 model. Covariance, Cholesky and closed form are float64 throughout.

The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tl_rome
from tl_rome.editors import KeyCovariance, Rome
from tl_rome.facts import EditRequest
from tl_rome.patching import AddedNoise, causal_trace
from tl_rome.scoring import score_targets
from tl_rome.storage.files import fingerprint

MAPS = {"hidden": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
_HALF, _KEPT = 1 << 12, ~((1 << 13) - 1)


def to_tf32(tensor: Tensor) -> Tensor:
    """The nearest float32 numbers with 10 bits of mantissa, halves away from zero."""
    return ((tensor.view(torch.int32) + _HALF) & _KEPT).view(torch.float32)


class EmulatedTF32(TorchDispatchMode):
    """Matrix products of float32 tensors take rounded inputs, forward and backward; what is added to them is kept."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _PRODUCTS:
            added = len(args) - 2
            args = (*args[:added], *(to_tf32(each) if each.dtype == torch.float32 else each for each in args[added:]))
        return func(*args, **(kwargs or {}))


class Medium:
    """The switch on for a while."""

    def __enter__(self) -> None:
        torch.set_float32_matmul_precision("medium")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision("highest")


ARITHMETICS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], torch.dtype]] = {
    "float32": (nullcontext, torch.float32),
    "float32, 'medium'": (Medium, torch.float32),
    "TF32, emulated": (EmulatedTF32, torch.float32),
    "bfloat16": (nullcontext, torch.bfloat16),
}


def traced(model: Any, folder: Path) -> dict[str, float]:
    """Largest difference of a score, and of the strongest cell's effect, over three maps."""
    worst, effect, cells = 0.0, 0.0, 0
    for name, component in MAPS.items():
        with np.load(folder / f"trace_2_{name}.npz") as stored:
            fact = tl_rome.Fact.from_prompt(str(stored["prompt"]), str(stored["subject"]))
            noise = AddedNoise(torch.from_numpy(stored["noise"]))
            found = causal_trace(model, fact, component, corruption=noise, progress=False)
            expected = torch.from_numpy(stored["scores"]).double().T
            low = float(stored["low_score"])
        worst = max(worst, (found.scores - expected).abs().max().item())
        largest = (expected - low).max().item()
        effect = max(effect, abs((found.scores - found.corrupted_score).max().item() - largest))
        cells += int(found.scores.argmax() == expected.argmax())
    return {"score": worst, "strongest effect": effect, "same strongest cell": cells}


def edited(model: Any, folder: Path) -> dict[str, float]:
    """Relative differences of u and v, and what the edited model says."""
    record = json.loads((folder / "edit_0.json").read_text("utf-8"))
    contexts = json.loads((folder / "edit_config.json").read_text("utf-8"))["context_templates"]
    rewrite, moment = record["record"]["requested_rewrite"], np.load(folder / "cov_layer5.npz")
    second = torch.tensor(moment["mom2_sum"]).double() / int(moment["count"])
    statistics = KeyCovariance(second, 5, int(moment["count"]), "wikitext-2", False, fingerprint(model))
    request = EditRequest(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"])
    edit = Rome(statistics, tuple(text.removesuffix("{}") for text in contexts))(model, request)
    (update,), arrays = edit.updates, np.load(folder / "edit_0.npz")
    with edit.applied(model):
        nll = score_targets(model, [request.fact.prompt], [rewrite["target_new"]["str"]]).nll[0].exp().reciprocal()
    names = ["u", "v"]
    apart = [torch.from_numpy(arrays[name]).double() for name in names]
    errors = [float((getattr(update, n) - e).norm() / e.norm()) for n, e in zip(names, apart, strict=True)]  # type: ignore[attr-defined]
    stored = float(np.exp(-record["after"]["rewrite"][0]["target_new"]))
    return {**dict(zip(names, errors, strict=True)), "P(new)": float(nll), "stored P(new)": stored}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path, help="folder with the stored traces and edit")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), default="hooked")
    parser.add_argument("--arithmetics", nargs="+", choices=ARITHMETICS, default=list(ARITHMETICS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for name in options.arithmetics:
        context, dtype = ARITHMETICS[name]
        model = tl_rome.load_model(model_class=options.model_class, dtype=dtype, progress=False)
        seconds = {}
        with context():
            found: dict[str, Any] = {}
            for work in (traced, edited):
                started = time.process_time()
                found |= work(model, options.golden)
                seconds[f"{work.__name__}, CPU-seconds"] = round(time.process_time() - started, 1)
        report[name] = {**found, **seconds}
        print(name, report[name], flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
