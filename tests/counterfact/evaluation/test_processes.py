"""Evaluation in several processes: the results of `evaluate`, in its order; errors and deaths are reported."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.evaluation import RECORDS, SHORT, RandomEdit
from support.families import KINDS

from tl_rome.counterfact import EvaluationConfig, evaluate, evaluate_in_processes, load_results
from tl_rome.counterfact.evaluation.workers import Setup, portable_errors
from tl_rome.errors import InputError, ModelMismatchError, NumericsError, WorkerError
from tl_rome.models.loading import load_model

pytestmark = pytest.mark.leg("3.9")
FREE = EvaluationConfig(generation_length=0, free=True, free_tokens=5)
OPTIONS = {"config": SHORT, "batch_size": 2, "progress": False}


@dataclass(frozen=True)
class Noting(RandomEdit):
    """Notes which process made each edit."""

    notes: str = ""

    def __call__(self, model: Any, request: Any) -> Any:
        with (Path(self.notes) / f"{request.subject} {self.strength}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().__call__(model, request)


@dataclass(frozen=True)
class Deadly(RandomEdit):
    """Ends its process at one record."""

    victim: str = RECORDS[4].request.subject

    def __call__(self, model: Any, request: Any) -> Any:
        if request.subject == self.victim:
            os._exit(3)
        return super().__call__(model, request)


def give(model: Any, *, editors: Mapping[str, Any]) -> Mapping[str, Any]:
    """These editors."""
    return editors


def differ(model: Any) -> Mapping[str, Any]:
    """An editor of each process's own."""
    return {"random": RandomEdit(strength=float(os.getpid()))}


def refuse() -> Any:
    """A model that cannot be loaded."""
    raise NumericsError("the weights are not finite")


@pytest.fixture
def load(family_dir):
    return partial(load_model, str(family_dir("gpt2")), model_class=KINDS[0], device="cpu", progress=False)


@pytest.mark.slow
def test_results_are_those_of_one_process_which_can_continue_the_store(tiny, load, tmp_path):
    (tmp_path / "notes").mkdir()
    notes = str(tmp_path / "notes")
    editors = {"weak": Noting(strength=0.1, notes=notes), "strong": Noting(refused=("Big Ben",), notes=notes)}
    expected = evaluate(tiny("gpt2", KINDS[0]), RECORDS, editors, store=tmp_path / "plain", **OPTIONS)
    found = evaluate_in_processes(load, RECORDS, partial(give, editors=editors), store=tmp_path / "many", **OPTIONS)
    assert found == expected
    makers = {file.name: file.read_text().split()[-1] for file in Path(notes).iterdir()}
    assert len(set(makers.values())) == 2
    for record in RECORDS:
        subject = record.request.subject
        assert makers[f"{subject} 0.1"] == makers[f"{subject} 2.0"], "one worker does a record under all editors"
    with pytest.raises(AssertionError, match="nothing is left"):
        evaluate_in_processes(
            load, RECORDS, partial(give, editors=editors | {"new": NoneLeft()}), store=tmp_path / "many", **OPTIONS
        )
    assert evaluate(tiny("gpt2", KINDS[0]), RECORDS, editors, store=tmp_path / "many", **OPTIONS) == expected


@dataclass(frozen=True)
class NoneLeft(RandomEdit):
    """An editor with a bug."""

    def __call__(self, model: Any, request: Any) -> Any:
        raise AssertionError("nothing is left")


@pytest.mark.slow
def test_the_death_of_a_worker_is_reported_and_what_was_done_is_kept(tiny, load, tmp_path):
    deadly = partial(give, editors={"deadly": Deadly()})
    with pytest.raises(
        WorkerError, match=r"^a worker process ended abruptly; what was done before is stored: run again"
    ):
        evaluate_in_processes(load, RECORDS, deadly, store=tmp_path, **OPTIONS)
    assert {result.case_id for result in load_results(tmp_path)} == {record.case_id for record in RECORDS[:4]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "editors", "error", "message"),
    [
        (refuse, partial(give, editors={}), NumericsError, "^the weights are not finite$"),
        (None, differ, ModelMismatchError, "workers differ in the editor 'random'; load the same model"),
    ],
)
def test_workers_that_cannot_start_end_the_run(load, tmp_path, broken, editors, error, message):
    with pytest.raises(error, match=message):
        evaluate_in_processes(broken or load, RECORDS, editors, store=tmp_path, **OPTIONS)


def test_one_worker_is_this_process_and_none_is_refused(tiny, tmp_path):
    model, editors = tiny("gpt2", KINDS[0]), {"random": RandomEdit()}
    found = evaluate_in_processes(lambda: model, RECORDS, lambda model: editors, store=tmp_path, workers=1, **OPTIONS)
    assert found == evaluate(model, RECORDS, editors, **OPTIONS)
    for load, make, message in (
        (lambda: None, None, "what load returned is a NoneType, not a HookedModel"),
        (lambda: model, lambda model: None, "what editors returned is a NoneType, not Mapping"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_in_processes(load, RECORDS, make, store=tmp_path, workers=1, **OPTIONS)
    with pytest.raises(InputError, match="workers is 0; give a number of at least 1"):
        evaluate_in_processes(lambda: model, RECORDS, lambda model: editors, store=tmp_path, workers=0, **OPTIONS)


def processes_of(group: int) -> list[str]:
    """Workers of a group of processes: group, number and command line."""
    found = subprocess.run(["ps", "-eo", "pgid=,pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line for line in found.splitlines() if line.split()[0] == str(group)]
    return [line for line in lines if "spawn_main" in line]


LEFT = """
import sys, time
from functools import partial
from pathlib import Path
from support.evaluation import RECORDS, SHORT, RandomEdit
from tl_rome.counterfact import evaluate_in_processes
from tl_rome.models.loading import load_model

class Slow(RandomEdit):
    def __call__(self, model, request):
        Path(sys.argv[2]).touch()
        time.sleep(120)

def editors(model):
    return {"slow": Slow()}

def load():
    if sys.argv[4] == "load":
        Path(sys.argv[2]).touch()
        time.sleep(120)
    return load_model(sys.argv[1], model_class=sys.argv[3], device="cpu", progress=False)

if __name__ == "__main__":
    evaluate_in_processes(load, RECORDS, editors, store="run", config=SHORT, batch_size=2, progress=False)
"""


def left_at(moment: str, sent: int, family_dir: Any, folder: Path) -> tuple[str, list[str]]:
    """Run a script with two workers up to a moment, and send a signal.

    The signal goes to the caller's process, as `kill` sends it, or to all of them, as a terminal sends Ctrl-C.

    Returns:
        What all of them wrote to stderr, and the workers that are left five seconds later.
    """
    script, mark = folder / "script.py", folder / "mark"
    script.write_text(LEFT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, script, family_dir("gpt2"), mark, KINDS[0], moment]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        while not mark.exists() and process.poll() is None:
            time.sleep(0.1)
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
        errors = process.communicate(timeout=60)[1]
    until = time.monotonic() + 5
    while (workers := processes_of(process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    for worker in workers:
        os.kill(int(worker.split()[1]), signal.SIGKILL)
    return errors, workers


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_only_the_caller_reports_it(family_dir, tmp_path):
    errors, workers = left_at("edit", signal.SIGINT, family_dir, tmp_path)
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == 1
    assert not workers


@pytest.mark.slow
def test_workers_end_with_a_caller_that_was_killed_while_they_load(family_dir, tmp_path):
    _, workers = left_at("load", signal.SIGKILL, family_dir, tmp_path)
    assert not workers


class NeedsTwo(Exception):
    """An error whose copy cannot be made from its text."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (NumericsError("the weights are not finite"), NumericsError, "^the weights are not finite$"),
        (NeedsTwo("one", "two"), WorkerError, "^NeedsTwo in a worker: one and two$"),
        (type("Local", (ValueError,), {})("here"), WorkerError, "^Local in a worker: here$"),
    ],
)
def test_errors_of_workers_that_cannot_be_sent_arrive_by_their_text(raised, error, message):
    with pytest.raises(error, match=message), portable_errors():
        raise raised


def test_what_cannot_be_sent_to_workers_is_refused_before_they_start(load, tmp_path):
    with pytest.raises(InputError, match=r"load or editors cannot be sent to a worker .*define both in a module"):
        evaluate_in_processes(load, RECORDS, lambda model: {}, store=tmp_path, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_what_a_worker_cannot_find_is_named(load, monkeypatch):
    packed = Setup(load, differ, SHORT, 0).packed()
    assert Setup.unpacked(packed).editors is differ
    monkeypatch.delattr(sys.modules[__name__], "differ")
    with pytest.raises(InputError, match=r"cannot be found in a worker \(AttributeError: .*'differ'"):
        Setup.unpacked(packed)


@pytest.mark.slow
def test_free_answers_come_from_processes_too(load, tmp_path):
    alone = evaluate(load(), RECORDS[:2], RandomEdit(), **OPTIONS | {"config": FREE})
    editors = partial(give, editors={"RandomEdit": RandomEdit()})
    found = evaluate_in_processes(load, RECORDS[:2], editors, store=tmp_path, **OPTIONS | {"config": FREE})
    assert [each.after.free_rewrite for each in found] == [each.after.free_rewrite for each in alone]
    assert all(each.after.free_paraphrase for each in found)
