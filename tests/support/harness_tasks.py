"""Tasks of lm-evaluation-harness in local files, and what the harness's own class for transformers makes of them."""

import json
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

SUBJECTS = ("The Eiffel Tower", "The Colosseum", "The Louvre", "Big Ben")
CITIES = ("Paris", "Rome", "Berlin")
TASKS = ("cities", "texts", "continued")
_SPLIT = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {}\ntest_split: test\n"
_YAML = {
    "cities": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "texts": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list:\n  - metric: word_perplexity\n",
    "continued": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: ' {{choices[gold]}}'\n"
    "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 8\nmetric_list:\n  - metric: exact_match\n",
}


def task_manager(folder: Path) -> TaskManager:
    """Write one task of each kind, and make what knows these alone. One text is longer than a tiny model's context."""
    folder.mkdir()
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for index, subject in enumerate(SUBJECTS):
            question, gold = f"{subject} is located in the city of", index % len(CITIES)
            text = f"{question} {CITIES[gold]}. " * (13 if index == 2 else 1)
            file.write(json.dumps({"q": question, "choices": CITIES, "gold": gold, "text": text}) + "\n")
    for name, body in _YAML.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{_SPLIT.format(folder / 'data.jsonl')}{body}", "utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


def plain_lm(folder: Path | str, **options: Any) -> HFLM:
    """The harness's own class on a folder in Hugging Face layout."""
    return HFLM(str(folder), device="cpu", dtype="float32", **{"batch_size": 3, **options})


def answers(lm: Any) -> dict[str, list[Any]]:
    """A model's answers to requests of all three kinds; some exceed a tiny model's context, some have no context."""
    long = "The Louvre is located in the city of Paris. " * 13
    starts = ("", "The Colosseum is located in the city of", "Paris is the capital of", long)
    pairs = [(start, f" {city}{end}") for start in starts for city in CITIES for end in ("", " and of Rome.")]
    settings = {"until": [" Rome", "."], "max_gen_toks": 12}
    contexts = [*starts[1:], "In the evening ", "東京"]
    return {
        "loglikelihood": lm.loglikelihood([_request("loglikelihood", pair) for pair in pairs]),
        "loglikelihood_rolling": lm.loglikelihood_rolling([_request("loglikelihood_rolling", (t,)) for t in contexts]),
        "generate_until": lm.generate_until([_request("generate_until", (text, settings)) for text in contexts]),
    }


def _request(kind: Any, arguments: tuple) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
