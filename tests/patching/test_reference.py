"""Traces of the real model equal the authors' numbers, with the authors' own draws of noise."""

import numpy as np
import pytest
import torch
from support.families import KINDS

from tl_rome.facts import Fact
from tl_rome.patching import AddedNoise, TraceConfig
from tl_rome.patching.trace import trace_together
from tl_rome.tokens import encode_fact


# One map of each component, and for the longer prompt its subject and its last token: a whole map takes half a minute.
@pytest.mark.parametrize(
    ("name", "component", "kind", "whole"),
    [
        pytest.param("trace_2_hidden", "resid_post", "bridge", True, marks=pytest.mark.leg("3.9")),
        pytest.param("trace_2_mlp", "mlp_out", KINDS[0], True, marks=pytest.mark.leg("3.9")),
        pytest.param("trace_2_attn", "attn_out", "bridge", True, marks=pytest.mark.leg("4")),
        pytest.param("trace_0_mlp", "mlp_out", "bridge", False, marks=pytest.mark.leg("4")),
    ],
)
def test_traces_of_the_reference_implementation(smollm2, shared_data, name, component, kind, whole):
    """Scores within 1.5e-6; the classes share the work, since other tests compare them on tiny models."""
    model = smollm2(kind)
    with np.load(shared_data / "golden" / f"{name}.npz") as golden:
        fact = Fact.from_prompt(str(golden["prompt"]), str(golden["subject"]))
        prompt = encode_fact(model, fact)
        assert prompt.tokens.tolist() == golden["input_ids"].tolist()
        assert [prompt.subject.start, prompt.subject.end] == golden["subject_range"].tolist()
        length = len(prompt.tokens)
        positions = list(range(length)) if whole else [prompt.subject.start, prompt.subject.last, length - 1]
        config = TraceConfig(corruption=AddedNoise(torch.from_numpy(golden["noise"])))
        options = {"generators": [torch.Generator()], "positions": positions, "progress": False}
        (result,) = trace_together(model, [fact], component, config, **options)
        assert result.answer == str(golden["answer"])
        assert result.method == "incremental"
        assert result.clean_score == pytest.approx(float(golden["high_score"]), abs=1.5e-6)
        assert result.corrupted_score == pytest.approx(float(golden["low_score"]), abs=1.5e-6)
        scores = torch.from_numpy(golden["scores"]).double().T
        torch.testing.assert_close(result.scores[:, positions], scores[:, positions], rtol=0, atol=1.5e-6)
