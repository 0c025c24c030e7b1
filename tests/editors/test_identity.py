"""What decides an edit is in its editor's hash, and nothing else."""

import functools
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy
import pytest
import torch
from support import edits as material
from support.families import KINDS

from tl_rome.editors import DRAFT, FT, FT_L, R_ROME, RELEASED, FineTune, KeyCovariance, Rome, SharedValues
from tl_rome.editors.identity import describe_editor, editor_name, resumable, settings_hash
from tl_rome.running.matrices import w_out
from tl_rome.storage.description import undescribed

PLACE = str(Path(__file__).parent)


def covariance(scale=1.0, layer=1):
    return KeyCovariance(scale * torch.eye(4, dtype=torch.float64), layer, 10, "test", False, "m")


def editor_hash(editor):
    return settings_hash(describe_editor(editor))


ROME = Rome(covariance(), ("", "He said. "))


@pytest.mark.parametrize(
    "change",
    [
        {"covariance": covariance(2.0)},
        {"covariance": covariance(layer=2)},
        {"contexts": ("", "She said. ")},
        {"config": replace(RELEASED, clamp=3.0)},
        {"config": R_ROME},
    ],
)
def test_what_decides_the_edits_of_rome_counts(change):
    assert editor_hash(replace(ROME, **change)) != editor_hash(ROME)
    assert editor_hash(Rome(covariance(), ("", "He said. "))) == editor_hash(ROME)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_choice": "because"},
        {"contexts_choice": "sampled somehow"},
        {"find_values": SharedValues()},
        {"seed": 1},
        {"config": replace(RELEASED, preset="mine")},
        {"config": replace(RELEASED, context_lengths=(), context_openings=("The",))},
        {"covariance": replace(covariance(), source="another description")},
    ],
)
def test_what_does_not_decide_the_edits_of_rome_does_not_count(change):
    assert editor_hash(replace(ROME, **change)) == editor_hash(ROME)


def test_a_given_layer_and_a_chosen_one_give_the_same_editor(tiny):
    model = tiny("llama", KINDS[0])
    statistics = material.covariance(model)
    options = {"covariance": statistics, "contexts": material.CONTEXTS, "progress": False}
    said, chosen = Rome.prepare(model, layer=1, **options), Rome.prepare(model, **options)
    assert said.layer_choice != chosen.layer_choice
    assert editor_hash(said) == editor_hash(chosen)


def test_the_class_of_an_editor_and_those_inside_it_count():
    class Other(Rome):
        pass

    assert editor_hash(Other(ROME.covariance, ROME.contexts)) != editor_hash(ROME)
    held = [SimpleNamespace(config={"inner": editor}) for editor in (ROME, replace(ROME, seed=1), FineTune())]
    assert editor_hash(held[0]) == editor_hash(held[1]) != editor_hash(held[2])


def test_layer_and_config_of_fine_tuning_count():
    editors = [FineTune(), FineTune(layer=1), FineTune(config=FT_L), FineTune(config=replace(FT, max_steps=24))]
    assert len({editor_hash(editor) for editor in editors}) == len(editors)
    assert editor_hash(FineTune(layer_choice="because")) == editor_hash(FineTune())


def other(model, request):
    return None


def test_other_editors_are_known_by_name_and_config():
    one, two = (SimpleNamespace(config={"scale": torch.tensor([scale])}) for scale in (1.0, 2.0))
    assert editor_hash(one) != editor_hash(two)
    assert editor_hash(one) == editor_hash(SimpleNamespace(config={"scale": torch.tensor([1.0])}))
    described = describe_editor(other)
    assert described.keys() == {"editor", "digest"}
    assert described["editor"] == "other"


def scaled(model, request, *, strength=1.0, parts=()):
    return None


def closure(strength):
    return lambda model, request: scaled(model, request, strength=strength)


def default(strength):
    def editor(model, request, strength=strength):
        return None

    return editor


def attribute(strength):
    editor = closure(1.0)
    vars(editor)["config"] = {"strength": strength}
    return editor


def wrapped(strength):
    return functools.wraps(other)(closure(strength))


STRENGTH = 1.0


def reading(model, request):
    return scaled(model, request, strength=STRENGTH)


def reading_global(strength):
    functions = {"scaled": scaled, "STRENGTH": strength, "__name__": __name__}
    return FunctionType(reading.__code__, functions, "reading")


class Callable:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, model, request):
        return None

    def edit(self, model, request):
        return None


class Slotted:
    __slots__ = ("strength",)
    __call__ = other

    def __init__(self, strength):
        self.strength = strength


def redefined(strength):
    """A class of one name, as a notebook's cell makes it again."""

    class Editor:
        scale = strength

        def __call__(self, model, request):
            return None

    return Editor()


VARIANTS = {
    "partial": lambda strength: partial(scaled, strength=strength),
    "partial of a partial": lambda strength: partial(partial(scaled, strength=strength), parts=(1,)),
    "positional": lambda strength: partial(scaled, None, strength),
    "closure": closure,
    "default": default,
    "attribute": attribute,
    "wrapper": wrapped,
    "global": reading_global,
    "object": Callable,
    "slots": Slotted,
    "bound method": lambda strength: Callable(strength).edit,
    "class attribute": redefined,
    "cached": lambda strength: functools.lru_cache(closure(strength)),
    "held inside": lambda strength: partial(scaled, parts=({"deep": [closure(strength)]},)),
    "not a number": lambda strength: partial(scaled, strength=strength * math.inf, parts=(strength,)),
    "array": lambda strength: partial(scaled, parts=numpy.full(3, strength)),
    "set": lambda strength: partial(scaled, parts={*"abcdefgh", strength}),
}


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_what_functions_and_objects_hold_counts(make):
    described = describe_editor(make(0.5))
    assert not undescribed(described)
    assert settings_hash(described) == editor_hash(make(0.5)) != editor_hash(make(50.0))
    json.dumps(described, allow_nan=False)


def test_the_code_of_a_function_counts():
    one, two = (lambda model, request: scaled(model, 1), lambda model, request: scaled(model, 2))
    assert editor_hash(one) != editor_hash(two)


def test_tensors_count_by_shape_and_every_element():
    values = (torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3).double(), torch.eye(2, 3))
    assert len({editor_hash(partial(scaled, parts=value)) for value in values}) == len(values)


def test_a_long_collection_is_kept_as_a_digest():
    one, two = (partial(scaled, parts=(*range(1000), last)) for last in (1, 2))
    assert editor_hash(one) != editor_hash(two)
    assert len(json.dumps(describe_editor(one))) < 300


def test_a_model_inside_counts_by_its_weights(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[0])
    editor = partial(scaled, parts=(model,))
    before = editor_hash(editor)
    assert editor_hash(partial(scaled, parts=(fresh_tiny("gpt2", KINDS[0]),))) == before
    with torch.no_grad():
        w_out(model, 1).mul_(2)
    assert editor_hash(editor) != before


def test_descriptions_are_the_same_in_every_process():
    program = "from test_identity import *; print([editor_hash(make(0.5)) for make in VARIANTS.values()])"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join([*sys.path, PLACE])}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    assert run.stdout.strip() == str([editor_hash(make(0.5)) for make in VARIANTS.values()])


def looped():
    held = []
    held.append(held)
    return held


@pytest.mark.parametrize("held", [looped(), Callable, other], ids=["loop", "class", "function"])
def test_what_holds_itself_is_described(held):
    assert not undescribed(describe_editor(partial(scaled, parts=held)))


UNCERTAIN = {
    "generator": lambda: (n for n in range(3)),
    "lock": threading.Lock,
    "file": lambda: open(os.devnull),
    "sparse": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("make", UNCERTAIN.values(), ids=UNCERTAIN)
def test_an_editor_of_unknown_content_is_never_the_same_in_another_run(make, caplog):
    held = make()
    described = describe_editor(partial(scaled, parts=[held]))
    assert undescribed(described) == [f"{type(held).__module__}.{type(held).__qualname__}"]
    one, two = resumable("mine", described), resumable("mine", described)
    assert settings_hash(one) != settings_hash(two)
    assert "results of 'mine' cannot be continued by a later run: it holds" in caplog.text
    assert "give the editor a method identity()" in caplog.text


def test_an_editor_that_is_known_keeps_its_settings(caplog):
    described = describe_editor(ROME)
    assert resumable("rome", described) is described
    assert not caplog.text


@pytest.mark.parametrize(
    ("editor", "name"),
    [
        (ROME, "rome"),
        (replace(ROME, config=R_ROME), "r_rome"),
        (replace(ROME, config=DRAFT), "rome (draft)"),
        (FineTune(), "ft"),
        (FineTune(config=FT_L), "ft_l"),
        (other, "other"),
        (partial(partial(other, 1), 2), "other"),
    ],
)
def test_names_for_tables(editor, name):
    assert editor_name(editor) == name
