"""A sweep is `evaluate` once for each value, and its curve is what `summarize` says of each."""

import json
import math
from dataclasses import replace

import pytest
from support.evaluation import RECORDS, RandomEdit
from support.families import KINDS, SENTENCES

from tl_rome.counterfact.evaluation.evaluate import evaluate
from tl_rome.counterfact.experiments.curve import CURVES, Curve
from tl_rome.counterfact.experiments.sweep import (
    SCORES_ONLY,
    finetune_over_epsilon,
    finetune_over_layers,
    rome_over_layers,
    sweep_editors,
)
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.report.tables import Estimate
from tl_rome.editors import FT, FT_L, estimate_covariances
from tl_rome.errors import InputError, StorageError

KIND = KINDS[0]


def swept(model, editors, **options):
    return sweep_editors(model, RECORDS, editors, progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_has_the_figures_of_its_editor_alone(tiny, kind):
    model, config = tiny("gpt2", kind), replace(FT, max_steps=4, learning_rate=0.02)
    editors = finetune_over_layers([2, 0], config)
    curve = swept(model, editors, name="ft")
    assert curve.x == (0, 2)
    for layer, row in zip((0, 2), curve.rows, strict=True):
        alone = summarize(evaluate(model, RECORDS, {"e": editors[layer]}, config=SCORES_ONLY, progress=False))
        assert {name: row[name] for name in CURVES} == {name: alone.rows["e"][name] for name in CURVES}
        assert curve.unedited["ES"] == alone.rows["unedited"]["ES"]
    assert curve.rows[0] != curve.rows[1]


def test_a_sweep_continues_where_it_stopped(tiny, tmp_path):
    model, made = tiny("gpt2", KIND), []

    class Counting(RandomEdit):
        def identity(self):  # which says that `made` decides nothing
            return {"strength": self.strength}

        def __call__(self, model, request):
            made.append(self.strength)
            return super().__call__(model, request)

    first = swept(model, {0.1: Counting(strength=0.1)}, along="strength", store=tmp_path)
    both = swept(model, {x: Counting(strength=x) for x in (0.1, 3.0)}, along="strength", store=tmp_path)
    assert both.rows[0] == first.rows[0]
    assert made == [0.1] * len(RECORDS) + [3.0] * len(RECORDS)


def test_fine_tuning_is_swept_over_layers_and_epsilon():
    layers = finetune_over_layers(range(3))
    assert [(x, each.layer, each.config) for x, each in layers.items()] == [(i, i, FT) for i in range(3)]
    epsilons = finetune_over_epsilon([1e-3, 1e-4], layer=2)
    assert {x: (each.layer, each.config) for x, each in epsilons.items()} == {
        x: (2, replace(FT_L, epsilon=x)) for x in (1e-3, 1e-4)
    }
    with pytest.raises(InputError, match=r"epsilon is 0\.0; give a number above 0"):
        finetune_over_epsilon([0.0])


def test_rome_over_layers(tiny):
    model = tiny("gpt2", KIND)
    found = estimate_covariances(model, [1, 2], SENTENCES, source="sentences", progress=False)
    editors = rome_over_layers(found.values(), ("",))
    assert [(x, each.layer) for x, each in editors.items()] == [(1, 1), (2, 2)]
    assert swept(model, editors).rows[0]["ES"].n == len(RECORDS)


def test_a_value_at_which_every_edit_fails_is_a_gap(tiny):
    subjects = tuple(record.request.subject for record in RECORDS)
    curve = swept(tiny("gpt2", KIND), {0: RandomEdit(), 1: RandomEdit(refused=subjects)})
    assert curve.rows[1]["S"].n == 0
    assert math.isnan(curve.rows[1]["ES"].mean)
    assert curve.grid().rows[2] == ("1", "0", "-", "-", "-", "-")
    again = Curve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False)))
    assert (again.x, again.rows[0], again.unedited) == (curve.x, curve.rows[0], curve.unedited)
    assert math.isnan(again.rows[1]["ES"].mean)


def test_the_table_has_the_unedited_model_first():
    figures = {name: Estimate(50.0, 40.0, 60.0, 7) for name in (*CURVES, "EM", "PM", "NM")}
    curve = Curve("ft", "epsilon", (5e-4,), (figures,), figures)
    with pytest.raises(InputError, match="column 'E' is unknown; choose among"):
        curve.grid(("E",))
    grid = curve.grid(("ES",))
    assert grid.header == ("epsilon", "n", "ES")
    assert grid.rows == (("unedited", "7", "50.0 [40.0, 60.0]"), ("0.0005", "7", "50.0 [40.0, 60.0]"))
    assert "95% interval" in grid.caption


def test_impossible_sweeps_are_refused(tiny):
    with pytest.raises(InputError, match="nothing to sweep"):
        swept(tiny("gpt2", KIND), {})
    with pytest.raises(InputError, match="too close to be distinguished"):
        swept(tiny("gpt2", KIND), {1.0: RandomEdit(), 1.0 + 1e-9: RandomEdit()})
    with pytest.raises(StorageError, match="damaged"):
        Curve.from_dict({"x": [1]})
