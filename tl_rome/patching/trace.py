"""Causal tracing (section 3): which states, restored to their clean values, bring the right answer back.

The model runs once on the clean prompt, and once per noise sample with the subject's embeddings corrupted. Then single
states h_t^(l), or runs of ten MLP or attention outputs, are put back to what they were in the clean run, one (layer,
token) cell at a time, and the probability of the answer is read. Cells with a high score are decisive.
"""

import logging

import torch
from tqdm.auto import tqdm

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.patching.corruption import Corruption, GaussianNoise, noise_scale
from tl_rome.patching.plain import trace_plain
from tl_rome.patching.result import TraceResult
from tl_rome.patching.runs import Runs, TargetProbability
from tl_rome.patching.sweep import SWEPT, trace_sweep
from tl_rome.patching.windows import Clipping, layer_window
from tl_rome.sites import HookedModel, Site, is_hooked_transformer
from tl_rome.storage import fingerprint
from tl_rome.tokens import encode_fact, encode_target, token_labels

_log = logging.getLogger(__name__)


@torch.no_grad()
def causal_trace(
    model: HookedModel,
    fact: Fact,
    component: str = "resid_post",
    *,
    generator: torch.Generator,
    window: int | None = None,
    clipping: Clipping = "released",
    corruption: Corruption | None = None,
    method: str = "sweep",
    max_rows: int = 512,
    progress: bool = True,
) -> TraceResult:
    """Trace where a model keeps a fact.

    Args:
        model: A HookedTransformer or TransformerBridge; left as found.
        fact: Prompt and subject. If it has a target, the probability of the target's first token is scored, otherwise
            that of the clean model's most likely token, as in the authors' code.
        component: "resid_post" for hidden states, "mlp_out", "attn_out", or any other component of `Site` with a
            [batch, pos, ...] activation.
        generator: Source of the noise; the same seed gives the same noise for every component.
        window: Layers restored together; by default 1 for hidden states and 10 for everything else, as in the paper.
        clipping: Which layers a window covers, see `layer_window`.
        corruption: What is done to the subject's embeddings; by default ten draws of `GaussianNoise` at `noise_scale`.
        method: "sweep" computes nothing twice; "plain" runs the whole model for each cell. The numbers are the same. A
            component or model that the sweep does not cover goes the plain way, which is logged and recorded.
        max_rows: Bound on the rows run at once, which bounds memory.
        progress: Whether to show a progress bar over positions.

    Returns:
        Scores of shape [layer, pos] with what is needed to read and to plot them.

    Raises:
        InputError: For an unknown component or method, a window below 1, a subject or prompt that cannot be tokenised
            as asked, or a corruption that returns another shape.
        NumericsError: If the model's outputs are not finite.
    """
    is_hooked_transformer(model)
    Site(component, 0).check(model)
    if method not in ("sweep", "plain"):
        raise InputError(f"method {method!r} is unknown; choose 'sweep' or 'plain'")
    prompt = encode_fact(model, fact)
    width = window if window is not None else (1 if component == "resid_post" else 10)
    n_layers = model.cfg.n_layers
    windows = [layer_window(layer, n_layers, width, clipping) for layer in range(n_layers)]
    corruption = corruption or GaussianNoise(noise_scale(model))
    runs = Runs(model, prompt, corruption, generator)
    predicted = int(runs.clean_logits[0].argmax())
    answer = predicted if fact.target is None else int(encode_target(model, fact.target, prompt.text)[0])
    metric = TargetProbability(answer)
    if method == "sweep" and component not in SWEPT:
        _log.info("%s is not covered by the sweep; tracing it cell by cell", component)
        method = "plain"
    with tqdm(total=len(prompt.tokens), desc=f"trace {component}", unit="pos", disable=not progress) as bar:
        trace = {"sweep": trace_sweep, "plain": trace_plain}[method]
        try:
            scores = trace(runs, component, windows, metric, max_rows=max_rows, tick=bar.update)
        except UnsupportedModelError as error:
            if method == "plain":
                raise
            _log.warning("%s; tracing cell by cell instead", error)
            bar.reset()
            method = "plain"
            scores = trace_plain(runs, component, windows, metric, max_rows=max_rows, tick=bar.update)
    names = token_labels(model, torch.tensor([answer, predicted]))
    result = TraceResult(
        scores=scores,
        clean_score=metric(runs.clean_logits).item(),
        corrupted_score=metric(runs.corrupted_logits()).double().mean().item(),
        component=component,
        window=width,
        clipping=clipping,
        answer=names[0],
        predicted=names[1],
        labels=prompt.labels,
        subject=prompt.subject,
        prepend_bos=prompt.prepend_bos,
        samples=runs.samples,
        corruption=repr(corruption) if isinstance(corruption, GaussianNoise) else type(corruption).__name__,
        method=method,
        model=fingerprint(model),
    )
    _warn(result)
    return result


def _warn(result: TraceResult) -> None:
    if result.answer != result.predicted:
        _log.warning("the model's first choice is %r, not the traced answer %r", result.predicted, result.answer)
    if result.total_effect <= 0:
        _log.warning(
            "corrupting the subject did not lower P(%r): %.3g clean, %.3g corrupted; the trace has nothing to explain",
            result.answer,
            result.clean_score,
            result.corrupted_score,
        )
