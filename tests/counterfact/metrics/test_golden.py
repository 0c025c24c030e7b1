"""The stored edit's own scores come out again: of the unedited model, and with its update written into the weights."""

import json

import numpy as np
import pytest
import torch
from support.families import KINDS
from support.results import case, scores

from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import UNEDITED, Measurement, PromptScores
from tl_rome.running.matrices import w_out
from tl_rome.scoring import score_targets

GROUPS = ("rewrite", "paraphrase", "neighborhood")


@pytest.fixture(scope="module")
def golden(shared_data):
    folder = shared_data / "golden"
    data = json.loads((folder / "edit_0.json").read_text("utf-8"))
    with np.load(folder / "edit_0.npz") as arrays:
        u, v = (torch.from_numpy(arrays[name]).double() for name in "uv")
        return CounterFactRecord.from_dict(data["record"]), data, torch.outer(u, v), int(arrays["layer"])


def measure(model, record):
    groups = []
    for group in GROUPS:
        prompts, request = record.prompts(group), record.request
        new, true = (
            score_targets(model, prompts, [target] * len(prompts))
            for target in (request.target_new, request.target_true)
        )
        groups.append(PromptScores.pair(new, true))
    return Measurement(*groups)


def check(found, expected):
    for group in GROUPS:
        for target in ("new", "true"):
            losses = [prompt[f"target_{target}"] for prompt in expected[group]]
            assert getattr(found, group).loss(target, "released") == pytest.approx(losses, abs=2e-4)


@pytest.mark.parametrize("kind", KINDS[:1])
def test_scores_before_and_after_the_stored_edit(smollm2, golden, kind):
    model, (record, data, delta, layer) = smollm2(kind), golden
    weight = w_out(model, layer)
    original = weight.detach().clone()
    before = measure(model, record)
    try:
        with torch.no_grad():
            weight.copy_((original.double() + delta).to(weight.dtype))
        after = measure(model, record)
    finally:
        with torch.no_grad():
            weight.copy_(original)
    check(before, data["before"])
    check(after, data["after"])


def test_success_of_the_stored_scores(golden):
    record, data, *_ = golden
    before, after = (
        Measurement(*(scores(*((p["target_new"], p["target_true"]) for p in side[group])) for group in GROUPS))
        for side in (data["before"], data["after"])
    )
    rows = summarize([case(record.case_id, after, before)]).rows
    # Counted in the file: of ten neighbours, the true object is likelier for seven, before and after.
    assert [rows[UNEDITED][name].mean for name in ("ES", "PS", "NS")] == [0, 50, 70]
    assert [rows["rome"][name].mean for name in ("ES", "PS", "NS")] == [100, 100, 70]
    assert rows["rome"]["EM"].mean == pytest.approx(100 * (np.exp(-0.012744409963) - np.exp(-16.78195)), rel=1e-6)
