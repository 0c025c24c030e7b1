"""How often `audit_model` finds an edit of SmolLM2-135M, its subject and its object; and false alarms.

Groups of edits of the shipped records, by several editors, are kept in a folder and made where they are missing. Each
is audited against the base and from the weights alone, with the subjects of all shipped records among the candidates.

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
from typing import Any, NamedTuple

import torch
from deep_thin import deep_thin
from support.families import CONFIGS, build_family

import tl_rome
from tl_rome.audit import Audit, audit_model
from tl_rome.audit.likely import candidates, standing_out, subject_shifts
from tl_rome.audit.spectrum import layer_spectra, threshold
from tl_rome.counterfact import CounterFactRecord, load_counterfact
from tl_rome.editors import BatchEdit, Edit, covariances_for
from tl_rome.editors.by_name import editor_by_name
from tl_rome.scoring import score_targets


class Group(NamedTuple):
    """Edits of one kind."""

    editor: str
    first: int
    """Its first record."""
    edits: int
    batch: int | None = None
    """Records that one edit takes at once; None for one, by an editor of single facts."""
    layer: int | None = None
    """The editor's own by default."""


PLAN = {
    "rome": Group("rome", 0, 30),
    "rome_layer3": Group("rome", 0, 10, layer=3),
    "rome_layer7": Group("rome", 0, 10, layer=7),
    "r_rome": Group("r_rome", 30, 6),
    "ft": Group("ft", 0, 4),
    "ft_l": Group("ft_l", 0, 4),
    "memit": Group("memit", 0, 3, batch=10),
}


def prepared(model: Any, group: Group) -> Any:
    """A group's editor."""
    at = None if group.layer is None else covariances_for(model, [group.layer])[group.layer]
    return editor_by_name(model, group.editor, covariance=at, progress=False)


def edits(model: Any, folder: Path, records: Sequence[CounterFactRecord], name: str) -> Iterator[Any]:
    """A group's edits, from the folder or made now."""
    group, editor = PLAN[name], None
    size = group.batch or 1
    for index in range(group.edits):
        path = folder / f"{name}-{index}.safetensors"
        if not path.exists():
            editor = editor or prepared(model, group)
            start = group.first + size * index
            requests = [record.request for record in records[start : start + size]]
            editor(model, requests if group.batch else requests[0]).save(path)
        yield (BatchEdit if group.batch else Edit).load(path, model)


def new_prob(model: Any, requests: Iterable[Any]) -> float:
    """Mean probability of the new objects."""
    pairs = [(request.fact.prompt, request.target_new) for request in requests]
    return float(score_targets(model, [p for p, _ in pairs], [t for _, t in pairs]).prob.mean())


def figures(model: Any, clean: Any, edit: Any, with_base: bool, subjects: Sequence[str]) -> dict[str, Any]:
    """What an audit of an edited model, which `model` is meanwhile, says of the edit; `clean` is the unedited one."""
    requests = edit.requests if isinstance(edit, BatchEdit) else (edit.request,)
    about = {request.fact.subject: request.target_new for request in requests}
    started = time.process_time()
    found = audit_model(model, clean if with_base else None, subjects=subjects)
    seconds = time.process_time() - started
    places, truth = {finding.place for finding in found.findings}, {*edit.places}
    named = {subject for finding in found.findings for subject in finding.subjects}
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
        "subject, nobody else": bool(named) and named <= {*about},
        "subjects": len(named & {*about}) / len(about),
        "wrong subjects": len(named - {*about}),
        "object": mean(first),
        "object in 5": mean(among),
        "P(new)": after,
        "P(new) repaired": repaired,
        "P(new) base": new_prob(clean, requests),
        "threshold": found.threshold or 0.0,
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
    parser.add_argument("--groups", nargs="+", choices=PLAN, default=[*PLAN])
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
    for name in options.groups:
        for edit in edits(base, options.edits, records, name):
            size = max(float(u.delta.norm() / u.place.weight(base).norm()) for u in edit.updates)
            with edit.applied(model):
                for mode in ("base", "alone"):
                    row = {"size": size, **figures(model, base, edit, mode == "base", subjects)}
                    if PLAN[name].editor == "rome" and mode == "base":
                        row["named without"] = named_without(model, edit, subjects)
                    rows[f"{name}, {mode}"].append(row)
                    print(name, mode, edit.label, json.dumps(row), flush=True)
    for name, some in rows.items():
        sizes = {
            title: sorted(round(row["size"], 3) for row in some if row["layer"] == found)
            for title, found in (("sizes found", True), ("sizes missed", False))
        }
        report[name] = {"edits": len(some), **_means(some), **sizes}
    for name in rows:
        print(name, report[name])
    print(json.dumps(report))


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: round(mean(float(row[name]) for row in rows), 3) for name in rows[0]}


if __name__ == "__main__":
    main()
