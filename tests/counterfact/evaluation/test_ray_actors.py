"""Evaluation on Ray gives what `evaluate` gives, even when workers die."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import RECORDS, SHORT, RandomEdit
from support.families import KINDS

from tl_rome.counterfact import evaluate, load_results
from tl_rome.counterfact.evaluation.ray_actors import evaluate_on_ray
from tl_rome.errors import InputError, MissingPackageError, ModelMismatchError, NumericsError, WorkerError
from tl_rome.models.loading import load_model

pytestmark = pytest.mark.leg("4")
NUMBERS = [record.case_id for record in RECORDS]
OPTIONS = {"config": SHORT, "batch_size": 1, "progress": False}


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for two workers, which import what this process can import."""
    ray = pytest.importorskip("ray", reason='no Ray: pip install "tl-rome[ray]"')
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture
def load(family_dir):
    return partial(load_model, str(family_dir("gpt2")), model_class=KINDS[0], device="cpu", progress=False)


@dataclass(frozen=True)
class Deadly(RandomEdit):
    """Ends its process at one record, unless a mark says that it has done so; without a mark it always does."""

    victim: str = RECORDS[3].request.subject
    mark: str | None = None

    def __call__(self, model: Any, request: Any) -> Any:
        if request.subject == self.victim and not (self.mark and Path(self.mark).exists()):
            if self.mark:
                Path(self.mark).touch()
            os._exit(1)
        return super().__call__(model, request)


def these(editors: Mapping[str, Any]):
    """Give `editors(model)` that makes these editors."""
    return lambda model: editors


@pytest.mark.slow
def test_results_are_those_of_one_process_which_can_continue_the_store(cluster, tiny, load, tmp_path):
    model, weak, strong = tiny("gpt2", KINDS[0]), RandomEdit(strength=0.1), RandomEdit(refused=("Big Ben",))
    expected = evaluate(model, RECORDS, {"weak": weak, "strong": strong}, store=tmp_path / "plain", **OPTIONS)
    found = evaluate_on_ray(load, RECORDS, these({"weak": weak}), store=tmp_path / "ray", **OPTIONS)
    assert found == expected[: len(RECORDS)]
    files = sorted(path.name for path in (tmp_path / "ray" / "states").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "plain" / "states").iterdir())
    both = evaluate(model, RECORDS, {"weak": weak, "strong": strong}, store=tmp_path / "ray", **OPTIONS)
    assert both == expected
    again = evaluate_on_ray(load, RECORDS, these({"strong": strong}), store=tmp_path / "plain", workers=1, **OPTIONS)
    assert again == expected[len(RECORDS) :]


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_all_records_are_there_once(cluster, tiny, load, tmp_path):
    mark = tmp_path / "mark"
    editor = Deadly(mark=str(mark))
    found = evaluate_on_ray(load, RECORDS, these({"deadly": editor}), store=tmp_path / "run", **OPTIONS)
    assert mark.exists()
    assert sorted(result.case_id for result in load_results(tmp_path / "run")) == sorted(NUMBERS)
    assert found == evaluate(tiny("gpt2", KINDS[0]), RECORDS, {"deadly": editor}, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(("retries", "workers"), [(1, 2), (0, 1)])
def test_a_batch_that_kills_every_worker_is_named_and_all_else_is_stored(cluster, load, tmp_path, retries, workers):
    message = rf"gave up record 1: {retries + 1} workers died .*; all other records of this step are stored"
    options = {"retries": retries, "workers": workers, **OPTIONS}
    with pytest.raises(WorkerError, match=message):
        evaluate_on_ray(load, RECORDS, these({"deadly": Deadly()}), store=tmp_path, **options)
    assert sorted(result.case_id for result in load_results(tmp_path)) == sorted({*NUMBERS} - {1})


def fail():
    raise NumericsError("the weights are not finite")


def end():
    os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        (fail, NumericsError, "^the weights are not finite$"),
        (end, WorkerError, "could not start a worker in 1 attempts"),
    ],
)
def test_workers_that_cannot_be_prepared_end_the_run(cluster, tmp_path, load, error, message):
    with pytest.raises(error, match=message):
        evaluate_on_ray(load, RECORDS, store=tmp_path, workers=1, retries=0, **OPTIONS)


@pytest.mark.slow
def test_a_replaced_worker_with_other_editors_ends_the_run(cluster, load, tmp_path):
    def editors(model):
        strength = 1.0 if (tmp_path / "mark").exists() else 2.0
        return {"e": Deadly(strength=strength, mark=str(tmp_path / "mark"))}

    with pytest.raises(ModelMismatchError, match="workers differ in the editor 'e'; load the same model in each"):
        evaluate_on_ray(load, RECORDS, editors, store=tmp_path / "run", workers=1, **OPTIONS)
    assert len(load_results(tmp_path / "run")) == 3


@pytest.mark.parametrize("options", [{"workers": 0}, {"retries": -1}])
def test_impossible_pools_are_refused(load, tmp_path, options):
    with pytest.raises(InputError, match="give a number of at least"):
        evaluate_on_ray(load, RECORDS, store=tmp_path, **options)


def test_without_ray_the_error_says_what_to_install(load, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'pip install "tl-rome\[ray\]"'):
        evaluate_on_ray(load, RECORDS, store=tmp_path)
