"""The border: wrong types and numbers out of range are refused by name, in everything that is public."""

import importlib
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest
import torch
from jaxtyping import Float
from support.families import KINDS
from support.trace_example import RESULT

import tl_rome
from tl_rome import EditRequest, Fact, continue_texts, load_model, score_targets
from tl_rome.annotations import conform
from tl_rome.arguments import Count, Finite, Positive, Seed, Share, annotations, guarded
from tl_rome.counterfact import EvaluationConfig, WikiDataNeighbors, evaluate, load_references, summarize, write_report
from tl_rome.editors import RELEASED, Edit, FineTune, FineTuneConfig, KeyCovariance, edited_rows, measure_convergence
from tl_rome.errors import ArgumentTypeError, InputError, TLRomeError
from tl_rome.patching import (
    GaussianNoise,
    TraceConfig,
    causal_trace,
    find_layer,
    layer_window,
    plot_averages,
    plot_trace,
)
from tl_rome.patching.averaging import layer as layer_module

pytestmark = pytest.mark.leg("3.9", "lowest")

FACT = Fact("{} is located in the city of", "The Eiffel Tower", "Paris")
PACKAGES = ("tl_rome", "tl_rome.patching", "tl_rome.editors", "tl_rome.counterfact")


def public() -> dict[str, Any]:
    """Functions and constructors of everything public, and public methods, by name."""
    found: dict[str, Any] = {}
    for package in map(importlib.import_module, PACKAGES):
        names = (
            vars(tl_rome)["__all__"]
            if package is tl_rome
            else [name for name in vars(package) if not name.startswith("_")]
        )
        for value in (getattr(package, name) for name in names):
            if inspect.isfunction(value) and value.__name__ != "guard":
                found[value.__qualname__] = value
            elif inspect.isclass(value) and not issubclass(value, BaseException) and Protocol not in value.__bases__:
                for name, method in inspect.getmembers(value, callable):
                    if inspect.isclass(method):  # an attribute, such as the class of an editor's settings
                        continue
                    if name in ("__init__", "__call__") or not name.startswith("_"):
                        found[f"{value.__name__}.{name}"] = getattr(method, "__func__", method)
    return {
        name: value
        for name, value in found.items()
        if (getattr(value, "__module__", None) or "").startswith("tl_rome.")
    }


PUBLIC = public()


def _shown(value: object) -> str:
    """The same text in every process: an object's own may name its address."""
    return type(value).__name__ if " at 0x" in repr(value) else str(value)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_everything_public_checks_every_argument(name):
    assert hasattr(PUBLIC[name], "_guarded"), "not guarded"
    function = inspect.unwrap(PUBLIC[name])
    hints = annotations(function)
    for argument in (inspect.signature(function).parameters.keys() & hints.keys()) - {"cls"}:
        if hints[argument] not in (Any, object):
            with pytest.raises(TLRomeError, match=f"^{argument} is an object, not "):
                conform(argument, object(), hints[argument])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Fact(3, "x"), r"template \(3\) is an int, not a str"),
        (lambda: causal_trace("gpt2", FACT), r"model \('gpt2'\) is a str, not a HookedModel; load one"),
        (lambda: TraceConfig(window="3"), r"window \('3'\) is a str, not int or None"),
        (lambda: TraceConfig(window=True), r"window \(True\) is a bool, not int or None"),
        (lambda: TraceConfig(metric=3), r"metric \(3\) is an int, not 'prob' or 'logprob' or function"),
        (lambda: TraceConfig(units=[[1, "2"]]), r"units\[0\]\[1\] \('2'\) is a str, not an int"),
        (lambda: load_model(3), r"name \(3\) is an int, not a str"),
        (lambda: load_model("x", dtype="float32"), r"dtype \('float32'\) is a str, not a dtype"),
        (lambda: summarize([1]), r"results\[0\] \(1\) is an int, not a CaseResult"),
        (lambda: Edit.load(3), r"path \(3\) is an int, not str or Path"),
        (lambda: layer_window(1.5, 12, 3), r"layer \(1\.5\) is a float, not an int"),
        (lambda: plot_trace(RESULT, ax=3), r"ax \(3\) is an int, not Axes or None"),
        (lambda: plot_averages([], axes=[3]), r"axes\[0\] \(3\) is an int, not an Axes"),
        (
            lambda: conform("figures", {"x": 3}, annotations(write_report)["figures"]),
            r"figures\['x'\] \(3\) is an int, not bytes or Figure",
        ),
        (lambda: GaussianNoise(1).draw((1, 1, 1), None), r"generator is a NoneType, not a Generator; make one"),
        (lambda: TraceConfig().metric_for(torch.zeros(())), r"target is a Tensor, not an Int\[Tensor, 'target'\]"),
        (lambda: EvaluationConfig(essence_texts={"Paris": 3}), r"essence_texts\['Paris'\] \(3\) is an int, not a str"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(ArgumentTypeError, match=f"^{message}"):
        call()


def test_wrong_types_come_with_a_remedy(tiny):
    model = tiny("gpt2", KINDS[0])
    with pytest.raises(TypeError, match=r"fact \('Paris is'\) is a str, not a Fact; make one with tl_rome\.Fact\.from"):
        causal_trace(model, "Paris is")
    with pytest.raises(ValueError, match=r"generator \(0\) is an int, not a Generator; make one with torch"):
        continue_texts(model, ["Paris"], 2, generator=0)
    with pytest.raises(TypeError, match=r"missing .*'fact'"):
        causal_trace(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: continue_texts(model, ["Paris"], -1, generator=torch.Generator()), "new_tokens is -1; give a"),
        (lambda model: continue_texts(model, ["Paris"], 1, generator=torch.Generator(), top_k=0), "top_k is 0; give a"),
        (lambda model: score_targets(model, ["Paris"], ["is"], max_batch_tokens=0), "max_batch_tokens is 0; give a"),
        (lambda model: evaluate(model, [], batch_size=0), "batch_size is 0; give a number of at least 1"),
        (lambda model: evaluate(model, [], seed=2**64), "seed is 18446744073709551616; give a number"),
        (lambda model: tl_rome.rome(model, FACT.rewrite("Rome"), seed=-(10**20)), "seed is -1000"),
        (lambda model: summarize([], confidence=float("nan")), "confidence is nan; give a number above 0 and below 1"),
        (
            lambda model: summarize([], conventions="Draft"),
            "conventions 'Draft' is unknown; choose 'draft' or 'neurips'",
        ),
        (lambda model: FineTune().each(model, [], batch_size=0), "batch_size is 0; give a number of at least 1"),
        (lambda model: edited_rows(model, [], [-2]), r"rows\[0\] is -2; give a number of at least -1"),
        (
            lambda model: GaussianNoise(1).draw((1, 2), torch.Generator()),
            r"shape has 2 items; give 3, as tuple\[int, int, int\]",
        ),
        (lambda model: TraceConfig(clipping="none"), "clipping 'none' is unknown; choose 'released' or 'draft'"),
        (lambda model: GaussianNoise(sigma=float("inf")), "sigma is inf; give a number above 0"),
        (lambda model: FineTuneConfig(preset="ft", stop_loss=float("nan")), "stop_loss is nan; give a finite number"),
        (lambda model: FineTuneConfig(preset="ft", learning_rate=float("inf")), "learning_rate is inf; give a number"),
        (lambda model: FineTuneConfig(preset="ft", learning_rate=10**400), "learning_rate has too many digits"),
        (lambda model: replace(RELEASED, kl_factor=float("nan")), "kl_factor is nan"),
        (
            lambda model: replace(RELEASED, context_lengths=((5, -1),)),
            r"context_lengths\[0\]\[1\] is -1",
        ),
        (
            lambda model: WikiDataNeighbors(cache=Path("x"), timeout=float("nan")),
            "timeout is nan; give a number above 0",
        ),
        (
            lambda model: measure_convergence(model, 1, [], torch.ones(1, 4), max_tokens=9, points=1),
            "points is 1; give",
        ),
    ],
)
def test_numbers_and_choices_out_of_range(tiny, call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        call(tiny("gpt2", KINDS[0]))


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 300, "x/" * 3000, "\ud83d.json"])
@pytest.mark.parametrize(
    "load", [load_references, KeyCovariance.load, Edit.load, load_model], ids=lambda f: f.__qualname__
)
def test_paths_that_no_file_has(load, path):
    with pytest.raises(InputError, match=r"is empty|has a NUL|300 bytes|is longer than|cannot be the name of a file"):
        load(path)


def test_what_python_writes_otherwise_is_taken_for_what_is_meant(tmp_path):
    config = TraceConfig(window=np.int64(3), whole_target=np.bool_(True), units=np.array([[0, 1]]))
    assert (type(config.window), config.whole_target, config.units) == (int, True, [[0, 1]])
    assert type(GaussianNoise(np.float32(0.5)).sigma) is type(GaussianNoise(1).sigma) is float
    assert tl_rome.Rome(_covariance(), ["", "He said. "]).contexts == ("", "He said. ")
    assert WikiDataNeighbors(cache=str(tmp_path)).cache == tmp_path


def _covariance() -> KeyCovariance:
    return KeyCovariance(torch.eye(4, dtype=torch.float64), 1, 10, "numbers", False, "model")


class _Named(Protocol):
    name: str


@dataclass
class _Thing:
    name: str


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (None, int | None),
        (_Thing("x"), _Named),
        ("recipe", list[str] | Literal["recipe"]),
        (torch.zeros(3, 4), Float[torch.Tensor, "a b"]),
        (len, Callable[[str], int]),
        ({"a": (1, 2)}, dict[str, tuple[int, int]]),
        (0.5, Share),
        (7, Count),
        (-1, Seed),
        (iter([1, "2"]), "an annotation that is only a name"),
    ],
    ids=_shown,
)
def test_what_fits_is_handed_on_as_it_is(value, hint):
    assert conform("it", value, hint) is value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (object(), _Named),
        (torch.zeros(3), Float[torch.Tensor, "a b"]),
        (torch.zeros(3, 4, dtype=torch.long), Float[torch.Tensor, "a b"]),
        ((1, 2, 3), tuple[int, int]),
        ({1: (1, 2)}, dict[str, tuple[int, int]]),
        ("abc", list[int]),
        (True, Count),
        (1 + 0j, Finite),
        (float("nan"), Positive),
        ({1, 2}, list[int]),
    ],
    ids=_shown,
)
def test_what_does_not_fit(value, hint):
    with pytest.raises(InputError, match="it"):
        conform("it", value, hint)


def test_what_is_guarded_looks_and_pickles_as_before():
    assert pickle.loads(pickle.dumps(find_layer)) is find_layer is layer_module.find_layer
    assert str(inspect.signature(layer_window)).startswith("(layer: ")
    assert (layer_window.__name__, layer_window.__doc__) == ("layer_window", inspect.unwrap(layer_window).__doc__)
    assert guarded(layer_window) is layer_window
    assert guarded(EditRequest) is EditRequest


def test_models_without_values_are_refused(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[0])
    model.to("meta") if KINDS[0] == "bridge" else torch.nn.Module.to(model, "meta")
    with pytest.raises(tl_rome.TLRomeError, match="model has weights on the meta device"):
        causal_trace(model, FACT)


def test_axes_named_alike_elsewhere_do_not_matter(tiny):
    """A caller that jaxtyping watches may call its own tensors by the names of ours."""
    from jaxtyping import jaxtyped

    keys = torch.zeros(2, 3)
    with jaxtyped("context"):
        assert isinstance(torch.zeros(5), Float[torch.Tensor, " d_mlp"])
        with pytest.raises(InputError, match="keys have shape"):
            measure_convergence(tiny("gpt2", KINDS[0]), 1, ["text"], keys, max_tokens=10)


def test_help_lists_the_fields_with_what_stands_under_them():
    import pydoc

    from tl_rome.editors.trained.mend.config import MendConfig
    from tl_rome.patching import TraceResult

    text = pydoc.render_doc(TraceResult, renderer=vars(pydoc)["plaintext"])
    assert "corrupted_score (float): Mean metric of the corrupted runs with nothing restored." in text
    assert text.index("Raises:") < text.index("Attributes:"), "below the docstring itself"
    assert "scores (Float[Tensor, 'layer pos *unit'])" in RESULT.__doc__
    assert text.count("Attributes:") == 1
    inherited = inspect.getdoc(MendConfig)
    assert all(f"    {name} (" in inherited for name in ("preset", "max_steps"))
    assert "_undo" not in Edit.__doc__
