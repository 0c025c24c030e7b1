"""How often `audit_model` finds an edit of SmolLM2-135M, its subject and its object; and false alarms.

Edits of the shipped records by several editors, which are kept in a folder and made where they are missing. Each is
audited against the base and from the weights alone, with the subjects of all shipped records among the candidates.

Needs `tests` on PYTHONPATH, for its random models. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from deep_thin import deep_thin
from support.families import CONFIGS, build_family

import tl_rome
from tl_rome.audit import Audit, audit_model
from tl_rome.audit.likely import candidates, standing_out, subject_shifts
from tl_rome.audit.spectrum import layer_spectra, threshold
from tl_rome.counterfact import CounterFactRecord, load_counterfact
from tl_rome.editors import BatchEdit, Edit
from tl_rome.editors.by_name import editor_by_name
from tl_rome.scoring import score_targets

PLAN = {"rome": (0, 30), "r_rome": (30, 6), "ft": (0, 4), "ft_l": (0, 4)}
"""First record and number of records."""
BATCHES, BATCH = 3, 10
"""Of MEMIT."""


def edits(
    model: Any, folder: Path, records: Sequence[CounterFactRecord], names: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Editors' names with their edits, from the folder or made now."""
    for name in (name for name in names if name in PLAN):
        editor, (first, count) = None, PLAN[name]
        for index, record in enumerate(records[first : first + count]):
            path = folder / f"{name}-{index}.safetensors"
            if not path.exists():
                editor = editor or editor_by_name(model, name, progress=False)
                editor(model, record.request).save(path)  # type: ignore[arg-type]
            yield name, Edit.load(path, model)
    memit = None
    for index in range(BATCHES if "memit" in names else 0):
        path = folder / f"memit-{index}.safetensors"
        if not path.exists():
            memit = memit or editor_by_name(model, "memit", progress=False)
            chosen = records[BATCH * index : BATCH * (index + 1)]
            memit(model, [record.request for record in chosen]).save(path)  # type: ignore[arg-type]
        yield "memit", BatchEdit.load(path, model)


def new_prob(model: Any, requests: Iterable[Any]) -> float:
    """Mean probability of the new objects."""
    pairs = [(request.fact.prompt, request.target_new) for request in requests]
    return float(score_targets(model, [p for p, _ in pairs], [t for _, t in pairs]).prob.mean())


def figures(model: Any, edit: Any, base: Any, subjects: Sequence[str]) -> dict[str, Any]:
    """What an audit of an edited model, which `model` is meanwhile, says of the edit."""
    requests = edit.requests if isinstance(edit, BatchEdit) else (edit.request,)
    about = {request.fact.subject: request.target_new for request in requests}
    started = time.process_time()
    found = audit_model(model, base, subjects=subjects)
    seconds = time.process_time() - started
    places, truth = {finding.place for finding in found.findings}, {*edit.places}
    seen = [name for name in about if name in {s for f in found.findings for s in f.subjects}]
    named = {f.subjects[0] for f in found.findings if f.subjects}
    first = [_is_object(found, name, about[name], 1) for name in about]
    among = [_is_object(found, name, about[name], 5) for name in about]
    after = new_prob(model, requests)
    repaired = after
    if found.repair is not None:
        with found.repair.applied(model):
            repaired = new_prob(model, requests)
    return {
        "layer": bool(places) and places <= truth,
        "all layers": places == truth,
        "wrong layers": len(places - truth),
        "changed": not found.is_clean,
        "first subject": bool(named) and named <= {*about},
        "subjects": len(seen) / len(about),
        "object": mean(first),
        "object in 5": mean(among),
        "P(new)": after,
        "P(new) repaired": repaired,
        "seconds": seconds,
    }


def _is_object(found: Audit, subject: str, target: str, count: int) -> bool:
    """Whether a target begins with one of the first tokens that were found for its subject."""
    tokens = [token.strip() for token in found.objects.get(subject, ())[:count]]
    return any(token and target.startswith(token) for token in tokens)


def named_without(model: Any, edit: Edit, subjects: Sequence[str]) -> bool:
    """Whether some subject stands out when the true one is no candidate."""
    (update,) = edit.updates
    shifts = subject_shifts(model, update.place, update.delta, candidates(subjects))
    shifts.pop(edit.request.fact.subject)
    return bool(standing_out(shifts))


def false_alarms(model: Any) -> dict[str, Any]:
    """Layers of an unedited model that are suspected."""
    spectra = layer_spectra(model)
    bound, scores = threshold(spectra), [spectrum.score for spectrum in spectra]
    alarms = sum(score >= bound for score in scores)
    return {"layers": len(scores), "alarms": alarms, "threshold": bound, "largest": max(scores)}


def unedited(model_class: Any, seeds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """False alarms on models with random weights."""
    yield "deep-thin", false_alarms(deep_thin(model_class))
    for family in CONFIGS:
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as place:
                folder = build_family(family, Path(place) / "tiny", seed)
                options = {"model_class": model_class, "device": "cpu", "progress": False}
                yield f"{family}-{seed}", false_alarms(tl_rome.load_model(str(folder), **options))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edits", type=Path, help="folder of edits, kept from run to run")
    parser.add_argument("--model-class", choices=("hooked", "bridge"), default="hooked")
    parser.add_argument("--editors", nargs="+", choices=[*PLAN, "memit"], default=[*PLAN, "memit"])
    parser.add_argument("--seeds", type=int, default=5, help="random models of each family")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"unedited": dict(unedited(options.model_class, options.seeds))}
    random = report["unedited"].values()
    print("random models", len(random), "with alarms", sum(bool(each["alarms"]) for each in random), flush=True)
    model, base = (tl_rome.load_model(model_class=options.model_class, progress=False) for _ in range(2))
    report["unedited"]["smollm2-135m"] = false_alarms(model)
    print("smollm2-135m", report["unedited"]["smollm2-135m"], flush=True)
    records = load_counterfact("sample")
    subjects = sorted({record.request.fact.subject for record in records})
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, edit in edits(base, options.edits, records, options.editors):
        size = max(float(u.delta.norm() / u.place.weight(base).norm()) for u in edit.updates)
        with edit.applied(model):
            for mode, other in (("base", base), ("alone", None)):
                row = {"size": size, **figures(model, edit, other, subjects)}
                if name == "rome" and other is not None:
                    row["named without"] = named_without(model, edit, subjects)
                rows[f"{name}, {mode}"].append(row)
                print(name, mode, edit.label, row, flush=True)
    report |= {name: {"edits": len(some), **_means(some)} for name, some in rows.items()}
    for name, found in (("missed alone", False), ("found alone", True)):
        report[name] = sorted(round(row["size"], 3) for row in rows["rome, alone"] if row["layer"] == found)
    for name in rows:
        print(name, report[name])
    print(json.dumps(report))


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: round(mean(float(row[name]) for row in rows), 3) for name in rows[0]}


if __name__ == "__main__":
    main()
