"""The records that ship with the package, and how to make them.

They are compiled by `build_records` from facts and templates written for it (`tl_rome/data/facts/`, one file per
relation). For nearly all facts, SmolLM2-135M gives the true object a higher probability than the other objects of
its relation after every template: there is something to rewrite, and something to preserve.

`python -m tl_rome.counterfact.dataset.sample` writes the file anew.
"""

import json
from importlib import resources
from pathlib import Path

import torch

from tl_rome.counterfact.dataset.builder import BuilderConfig, Compilation, build_records
from tl_rome.counterfact.dataset.load import SAMPLE_FILE
from tl_rome.counterfact.dataset.relations import parse_relations
from tl_rome.fact_files import Relation
from tl_rome.storage.writing import write_whole

CONFIG = BuilderConfig(per_relation=7)
SEED = 0


def load_sample_relations() -> list[Relation]:
    """The relations with their facts, in the order of their numbers."""
    files = [
        file for file in resources.files("tl_rome.data").joinpath("facts").iterdir() if file.name.endswith(".json")
    ]
    texts = {file.name.removesuffix(".json"): file.read_text("utf-8") for file in files}
    return parse_relations({name: texts[name] for name in sorted(texts, key=lambda name: int(name[1:]))})


def build_sample() -> Compilation:
    """Compile the sample; always the same."""
    return build_records(load_sample_relations(), generator=torch.Generator().manual_seed(SEED), config=CONFIG)


def write_sample(path: str | Path) -> Path:
    """Write the sample as JSON lines.

    Raises:
        StorageError: If the file cannot be written.
    """
    lines = (json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in build_sample().records)
    return write_whole(Path(path), "".join(lines).encode())


if __name__ == "__main__":
    write_sample(Path(__file__).parents[2] / "data" / SAMPLE_FILE)
