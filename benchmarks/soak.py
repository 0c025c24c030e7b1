"""What piles up over many edits and evaluations of tiny models: memory, tensors, open files, threads, hooks.

Each round does one job on one of the model classes, in turn; some end in an error, of ours or of the caller. The first
rounds fill what is filled once. After them nothing may grow: the exit code is 1 if something does. The last line is one
JSON object.
`make soak` runs it, with the tests' tiny models on the path.
"""

import argparse
import gc
import json
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.attacked import Attacked
from support.edits import REQUEST
from support.evaluation import QUICK, RECORDS, RandomEdit
from support.families import KINDS, build_family
from support.state import model_state
from support.traces import trace

from tl_rome import evaluate
from tl_rome.errors import TLRomeError

WARM_UP = 200
"""Rounds that may take what is kept for good."""
ALLOWED = {"resident MB": 24, "tensors": 0, "files": 0, "threads": 0, "hooks": 0}
"""Growth that is put up with; allocators keep some memory for later."""


class Blunder(Exception):
    """Of the caller."""


def jobs_of(attacked: Attacked) -> dict[str, Callable[[], Any]]:
    """What users do, and what goes wrong."""
    model = attacked.model

    def blunder(*args: Any) -> Any:
        raise Blunder

    def inside_an_edit() -> None:
        with attacked.sequence.applied(model):
            raise Blunder

    return attacked.jobs() | {
        "user's error in an edit": inside_an_edit,
        "user's error in a metric": lambda: trace(model, metric=blunder),
        "edit of an absent layer": lambda: RandomEdit(9)(model, REQUEST),
        "edit that is not finite": lambda: RandomEdit(strength=float("inf"))(model, REQUEST).apply(model),
        "evaluation with failures": lambda: evaluate(
            model, RECORDS, RandomEdit(refused=("Big Ben",)), config=QUICK, progress=False
        ),
        "evaluation of nonsense": lambda: evaluate(model, RECORDS, {"x": blunder}, config=QUICK, progress=False),
    }


def measure(models: list[Any]) -> dict[str, float]:
    """What is there now, after a collection of garbage."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated objects that are only looked at
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    return {
        "resident MB": round(pages * 4096 / 2**20, 1),
        "tensors": tensors,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "hooks": sum(sum(counts) for model in models for counts in model_state(model)["hooks"].values()),
    }


def main() -> int:
    """Run the rounds, print a line for every hundred, and compare the last with the first after the warm-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    errors: dict[str, int] = {}
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        attacked = [Attacked(build_family("gpt2", Path(folder) / "tiny-gpt2"), kind) for kind in KINDS]
        models, jobs = [each.model for each in attacked], [jobs_of(each) for each in attacked]
        now = measure(models)
        print("rounds", *(f"{name:>12}" for name in now))
        for number in range(1, rounds + 1):
            mine = jobs[number % len(jobs)]
            try:
                list(mine.values())[number // len(jobs) % len(mine)]()
            except (TLRomeError, Blunder) as error:
                errors[type(error).__name__] = errors.get(type(error).__name__, 0) + 1
            if number % 100 == 0:
                now = measure(models)
                first = now if number <= WARM_UP else first
                print(f"{number:6}", *(f"{value:12}" for value in now.values()), flush=True)
        broken = [words for each in attacked if (words := each.broken())]
    grown = {name: now[name] - first[name] for name in now if first and now[name] - first[name] > ALLOWED[name]}
    print(json.dumps({"rounds": rounds, "errors": errors, "last": now, "grown": grown, "broken": broken}))
    return 1 if grown or broken else 0


if __name__ == "__main__":
    sys.exit(main())
