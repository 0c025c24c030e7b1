"""Traces of the real model equal the authors' numbers, with the authors' own draws of noise."""

import numpy as np
import pytest
import torch
from families import KINDS
from tracing import trace

from tl_rome.facts import Fact
from tl_rome.patching import AddedNoise
from tl_rome.tokens import encode_fact


def check_golden(model, folder, name, component):
    with np.load(folder / "golden" / f"{name}.npz") as golden:
        fact = Fact.from_prompt(str(golden["prompt"]), str(golden["subject"]))
        result = trace(model, component, fact=fact, corruption=AddedNoise(torch.from_numpy(golden["noise"])))
        assert encode_fact(model, fact).tokens.tolist() == golden["input_ids"].tolist()
        assert [result.subject.start, result.subject.end] == golden["subject_range"].tolist()
        assert result.answer == str(golden["answer"])
        assert result.method == "sweep"
        assert result.clean_score == pytest.approx(float(golden["high_score"]), abs=1.5e-6)
        assert result.corrupted_score == pytest.approx(float(golden["low_score"]), abs=1.5e-6)
        scores = torch.from_numpy(golden["scores"]).double().T
        torch.testing.assert_close(result.scores, scores, rtol=0, atol=1.5e-6)


# Three maps of the shorter prompt, and one of the other: each costs half a minute, and a map is 270 scores.
@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("trace_2_hidden", "resid_post"),
        ("trace_2_mlp", "mlp_out"),
        ("trace_2_attn", "attn_out"),
        ("trace_0_mlp", "mlp_out"),
    ],
)
def test_traces_of_the_reference_implementation(smollm2, shared_data, name, component):
    check_golden(smollm2("bridge"), shared_data, name, component)


@pytest.mark.skipif(len(KINDS) < 2, reason="this TransformerLens has one class")
def test_a_trace_of_the_reference_implementation_in_the_other_class(smollm2, shared_data):
    # One map is enough here: both classes are compared on tiny models of every family, see `test_trace`.
    check_golden(smollm2("hooked"), shared_data, "trace_2_mlp", "mlp_out")
