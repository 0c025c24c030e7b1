"""Evaluations that are killed at random moments and continued until they are done: what is lost, doubled or different?

A tiny random model and two editors are evaluated on 100 records, in one process and in two workers. Each run is killed
up to three times, and its store is then compared line by line with that of a run that was left alone; seconds apart,
every figure and text must be the same. Five seconds after the death of a process with workers, none of these may be
left. Ctrl-C, which a terminal sends to all processes, must end `tl-rome compare --workers 2` with exit code 130 and one
line beside the warnings of edits. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tl_rome
from tl_rome.counterfact import EvaluationConfig, evaluate, evaluate_in_processes

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support.evaluation import RandomEdit, record
from support.families import build_family

CONFIG = EvaluationConfig(generation_length=20, texts=1)
RECORDS = tuple(record(number, f"Tower {number}", "Rome", "Paris", ("The Louvre",)) for number in range(100))
KILLS = 3
"""At most, in one run."""
PATIENCE = 5
"""Seconds that workers have to end after the process that started them."""


def load(folder: Path) -> Any:
    """The model."""
    return tl_rome.load_model(str(folder), device="cpu", progress=False)


def editors(model: Any) -> Mapping[str, Any]:
    """Two editors."""
    return {"weak": RandomEdit(strength=0.1), "strong": RandomEdit()}


def begin(work: Callable[[], Any]) -> int:
    """Do some work in a process of its own, which leads a group; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child: int, within: float) -> bool:
    """Whether a process ends by itself within some seconds; it must then have succeeded."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert not status, f"a run failed: {status}"
            return True
        time.sleep(0.01)
    return False


def left_behind(group: int) -> int:
    """How many processes of a group there are after `PATIENCE` seconds, or as soon as there is none; they are ended."""
    until = time.monotonic() + PATIENCE
    while True:
        found = subprocess.run(["ps", "-eo", "pgid=,pid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in found.splitlines()]
        alive = [int(number) for their, number, state in rows if int(their) == group and not state.startswith("Z")]
        if not alive or time.monotonic() > until:
            break
        time.sleep(0.1)
    for number in alive:
        os.kill(number, signal.SIGKILL)
    return len(alive)


def lines(store: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each file of a store without the seconds, which differ always."""
    found = {}
    for file in sorted([store / "unedited.jsonl", *store.glob("editors/*.jsonl")]):
        read = [json.loads(line) for line in file.read_text("utf-8").splitlines()[1:]]
        found[file.name] = [{name: value for name, value in line.items() if name != "seconds"} for line in read]
    return found


def compare(store: Path, undisturbed: Path) -> Counter[str]:
    """Lines that are lost, doubled or different, and files that were left half-written."""
    found: Counter[str] = Counter(lost=0, doubled=0, different=0, temporary=0)
    mine = lines(store)
    for name, expected in lines(undisturbed).items():
        numbers = Counter(line["case_id"] for line in mine.get(name, []))
        found["doubled"] += sum(numbers.values()) - len(numbers)
        kept = {line["case_id"]: line for line in mine.get(name, [])}
        found["lost"] += sum(line["case_id"] not in kept for line in expected)
        found["different"] += sum(kept.get(line["case_id"], line) != line for line in expected)
    found["temporary"] = sum(1 for file in store.rglob(".*") if file.is_file())
    return found


def killed(runs: int, folder: Path, name: str, work: Callable[[Path], Any], draw: random.Random) -> dict[str, int]:
    """Kill runs, and compare what they come to; counts of all of them."""
    started, undisturbed = time.monotonic(), folder / f"{name}-undisturbed"
    assert ended(begin(partial(work, undisturbed)), 600)
    seconds, found = time.monotonic() - started, Counter(runs=runs, kills=0, left_behind=0)
    for run in range(runs):
        store = folder / f"{name}-{run}"
        for kills in range(KILLS + 1):
            child = begin(partial(work, store))
            if ended(child, 600 if kills == KILLS else draw.uniform(0, seconds)):
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found["kills"] += 1
            found["left_behind"] += left_behind(child)
        found.update(compare(store, undisturbed))
        print(f"{name}, run {run + 1} of {runs}: {dict(found)}", flush=True)
    return dict(found)


def interrupted(runs: int, folder: Path, model: Path, draw: random.Random) -> dict[str, int]:
    """Send Ctrl-C to command lines; how many ended as they should."""
    data = folder / "records.jsonl"
    data.write_text("".join(json.dumps(each.to_dict()) + "\n" for each in RECORDS[:40]))
    options = ["--editors", "ft", "--workers", "2", "--records", data, "--model", model, "--generation-length", "20"]
    found: Counter[str] = Counter(runs=0, finished=0, right=0, left_behind=0)
    seconds = 0.0
    for run in range(-1, runs):  # the first is left alone
        command = [sys.executable, "-m", "tl_rome.cli", "compare", *options, "--out", folder / f"compare-{run}"]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started = time.monotonic()
        with subprocess.Popen([*map(str, command)], start_new_session=True, **pipes) as process:
            if run >= 0:
                time.sleep(draw.uniform(1.5, seconds))  # not while Python itself starts
                os.killpg(process.pid, signal.SIGINT)
            errors = process.communicate(timeout=300)[1]
        seconds = seconds or time.monotonic() - started
        if run >= 0:
            said = [line for line in errors.splitlines() if not line.startswith("warning: ")]
            right = (process.returncode, said) == (130, ["interrupted; run the same command again to go on"])
            found.update(runs=1, finished=not process.returncode, right=right, left_behind=left_behind(process.pid))
            if process.returncode and not right:
                print(f"exit code {process.returncode}, {len(said)} lines:", *said[-20:], sep="\n")
        print(f"Ctrl-C, run {run + 1} of {runs}: {dict(found)}", flush=True)
    return dict(found)


def main() -> None:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="in one process")
    parser.add_argument("--worker-runs", type=int, default=10, help="in two workers")
    parser.add_argument("--ctrl-c", type=int, default=40, help="command lines with two workers")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    draw, summary = random.Random(asked.seed), {}
    options: dict[str, Any] = {"config": CONFIG, "batch_size": 1, "progress": False}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        directory = build_family("gpt2", folder / "model")
        model = load(directory)

        def alone(store: Path) -> None:
            evaluate(model, RECORDS, editors(model), store=store, **options)

        def together(store: Path) -> None:
            evaluate_in_processes(partial(load, directory), RECORDS, editors, store=store, **options)

        if asked.runs:
            summary["one process"] = killed(asked.runs, folder, "evaluate", alone, draw)
        if asked.worker_runs:
            summary["two workers"] = killed(asked.worker_runs, folder, "in processes", together, draw)
        if asked.ctrl_c:
            summary["Ctrl-C"] = interrupted(asked.ctrl_c, folder, directory, draw)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
