"""How a trace is made, apart from the model, the fact and the draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

from jaxtyping import Int
from torch import Tensor

from tl_rome.arguments import Count
from tl_rome.errors import InputError
from tl_rome.patching.corruption import Corruption
from tl_rome.patching.metrics import Metric, TargetLogprob, TargetProbability
from tl_rome.running.memory import fitting_tokens
from tl_rome.sites import HookedModel, component_name
from tl_rome.storage.description import describe, undescribed

Clipping = Literal["released", "draft"]
"""Which layers a window covers, see `layer_window`."""
Direction = Literal["denoising", "noising"]
"""Whether clean states are restored in corrupted runs, or corrupted states put into a clean run."""
MetricName = Literal["prob", "logprob"]
"""The target's probability, in [0, 1], or its logarithm, in nats."""
Metrics = MetricName | Metric | Mapping[str, MetricName | Metric] | Sequence[MetricName | Metric]
"""One metric, or several by name or in a list."""
Sever = Literal["mlp", "attn"]
"""Whose outputs are frozen at the patched position."""
Method = Literal["incremental", "plain"]
"""How an exact trace is computed: nothing twice, or the whole model for each cell."""
Units = str | int | Sequence[Sequence[int]] | None
"""How a state's features are split: not at all, "heads" (one by one), groups of a size, or groups of given indices."""
_METRICS = {"prob": TargetProbability, "logprob": TargetLogprob}


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """Settings of `causal_trace`; each is described there.

    Raises:
        InputError: If a choice is unknown.
    """

    window: Count | None = None
    """Layers patched together; None is 1 for hidden states and 10 for everything else."""
    clipping: Clipping = "released"
    """Which layers a window covers."""
    corruption: Corruption | None = None
    """What is done to the subject's embeddings; None is `GaussianNoise()`."""
    metric: MetricName | Metric = "prob"
    """"prob", "logprob", or a function of logits."""
    direction: Direction = "denoising"
    """Which run is patched."""
    sever: Sever | None = None
    """Component that is frozen at the patched position: "mlp" or "attn"."""
    units: Units = None
    """How states are split."""
    whole_target: bool | None = None
    """Whether all tokens of the target are scored, or only the first; None is all where the first is white space."""
    method: Method = "incremental"
    """"incremental" or "plain"."""
    max_batch_tokens: Count | None = None
    """Bound on rows x positions run at once; None is what fits the device, 4096 on a CPU."""

    def __post_init__(self) -> None:
        check_choice("clipping", self.clipping, Clipping)
        check_choice("direction", self.direction, Direction)
        check_choice("method", self.method, Method)
        if self.sever is not None:
            check_choice("sever", self.sever, Sever)
        if not callable(self.metric) and self.metric not in get_args(MetricName):
            raise InputError(f"metric {self.metric!r} is unknown; choose 'prob', 'logprob' or a function of logits")

    def metric_for(self, target: Int[Tensor, " target"]) -> Metric:
        """The metric for one prompt, whose answer has these tokens."""
        if callable(self.metric):
            return self.metric
        return _METRICS[self.metric](tuple(target.tolist()))

    def width(self, component: str) -> int:
        """Layers patched together."""
        if self.window is not None:
            return self.window
        return 1 if component_name(component) == "resid_post" else 10

    def batch_tokens(self, model: HookedModel) -> int:
        """Rows x positions to run at once."""
        return self.max_batch_tokens or fitting_tokens(model, 4096)

    def describe(self) -> dict[str, Any]:
        """The settings that decide the scores, as JSON can hold them, for stores to tell one setting from another.

        Raises:
            InputError: If it is not known what decides a metric's scores or a corruption.
        """
        skipped = ("method", "max_batch_tokens")
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in skipped}
        return {name: value if _plain(value) else _identity(name, value) for name, value in found.items()}


def named_metrics(metric: Metrics) -> dict[str, MetricName | Metric]:
    """Metrics by name; those of a list are called "0", "1" and so on, and a single one has an empty name.

    Raises:
        InputError: If there is none.
    """
    found: dict[str, Any]
    if isinstance(metric, Mapping):
        found = dict(metric)
    elif isinstance(metric, Sequence) and not isinstance(metric, str):
        found = {str(place): each for place, each in enumerate(metric)}
    else:
        found = {"": metric}
    if not found:
        raise InputError("there are no metrics; give at least one, such as 'prob'")
    return found


def as_asked(metric: Metrics, found: Sequence[Any]) -> Any:
    """What was found by each of `named_metrics`, in the form that these had: by name, a list, or alone."""
    if isinstance(metric, Mapping):
        return dict(zip(metric, found, strict=True))
    return list(found) if isinstance(metric, Sequence) and not isinstance(metric, str) else found[0]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is not one of a `Literal`'s.

    Raises:
        InputError: If it is not; the message lists the choices.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise InputError(f"{name} {value!r} is unknown; choose {' or '.join(map(repr, allowed))}")


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _in_full(value: object) -> bool:
    """Whether a value's `repr` says all of it."""
    return _plain(value) or (isinstance(value, list | tuple) and all(map(_in_full, value)))


def _identity(name: str, value: object) -> Any:
    """What a store knows a setting by: one text for a dataclass of plain fields, else all that `describe` finds."""
    if not callable(value):
        return described(value)
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        if all(map(_in_full, parts.values())):
            return f"{type(value).__qualname__}({', '.join(f'{key}={part!r}' for key, part in parts.items())})"
    found = describe(value)
    if unknown := undescribed(found):
        raise InputError(
            f"the {name} {described(value)} holds {', '.join(sorted(set(unknown)))}, of which it is not known whether "
            "it is the same in a later run, so no store can keep its traces; give it a method identity() that returns "
            "all that decides what it does, as JSON"
        )
    return found


def described(value: object) -> str:
    """A short text for readers: what a dataclass says of itself, a function's name, else the type's."""
    text = repr(value)
    if " at 0x" in text or "\n" in text:
        return getattr(value, "__qualname__", type(value).__name__)
    return text
