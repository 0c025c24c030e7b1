"""Traces to TransformerLens's PatchingResult and back; truth is what TransformerLens computes on the same runs."""

import pytest
import torch
from support.families import KINDS
from support.traces import FACT, NOISE, trace

from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.patching import LogitDifference, from_patching_result, replaced_subject, to_patching_result
from tl_rome.tokens import encode

KIND = KINDS[0]
DIFFERENCE = LogitDifference(3, 5)


@pytest.mark.leg("3.9")
def test_an_earlier_transformer_lens_is_told_apart(tiny):
    with pytest.raises(UnsupportedModelError, match="has no PatchingResult"):
        to_patching_result(trace(tiny("gpt2", KIND)))


@pytest.mark.leg("4")
def test_there_and_back_with_several_metrics_and_heads(tiny):
    model = tiny("gpt2", KIND)
    found = trace(model, "z", window=1, units="heads", metric={"log P": "logprob", "difference": DIFFERENCE})
    both = to_patching_result(found)
    assert (both.axis_names, both.metric_names) == (["layer", "pos", "head"], ["log P", "difference"])
    for name, each in found.items():
        one = both[name]
        assert torch.equal(one.values, each.scores)
        torch.testing.assert_close(one.effect(), each.effects)
        clean = torch.tensor(each.clean_score, dtype=torch.float64)
        torch.testing.assert_close(one.normalized(clean), each.normalized)
        back = from_patching_result(one, each)
        assert (vars(back) | {"scores": 0, "method": 0, "metric": 0, "samples": 0}) == (
            vars(each) | {"scores": 0, "method": 0, "metric": 0, "samples": 0}
        )
        assert torch.equal(back.scores, each.scores)
    assert len(both.to_dataframe()) == both.values.numel()


@pytest.mark.leg("4")
def test_it_holds_what_transformer_lens_finds_itself(tiny):
    """Another subject of the same length: the experiment that TransformerLens's own functions make."""
    from transformer_lens import patching

    model = tiny("gpt2", KIND)
    other = "Space Needle"
    corruption = replaced_subject(model, FACT, other)
    found = trace(model, "resid_pre", window=1, metric=DIFFERENCE, corruption=corruption)
    _, cache = model.run_with_cache(encode(model, FACT.prompt)[None])
    theirs = patching.get_act_patch_resid_pre(
        model, encode(model, FACT.prompt.replace(FACT.subject, other))[None], cache, DIFFERENCE,
        reduce="none", baseline=True,
    )  # fmt: skip
    ours = to_patching_result(found)
    torch.testing.assert_close(ours.values.float(), theirs.mean().float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.baseline.float(), theirs.baseline.mean().float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(from_patching_result(theirs, found).effects, found.effects, rtol=1e-3, atol=1e-4)


@pytest.mark.leg("4")
def test_what_is_not_theirs_is_refused(tiny):
    model = tiny("gpt2", KIND)
    found = trace(model, "resid_post")
    with pytest.raises(InputError, match="noising"):
        to_patching_result(trace(model, "resid_post", direction="noising"))
    with pytest.raises(InputError, match="different sweeps"):
        to_patching_result({"a": found, "b": trace(model, "mlp_out", corruption=NOISE)})
    theirs = to_patching_result(found)
    theirs.baseline = None
    with pytest.raises(InputError, match="baseline=True"):
        from_patching_result(theirs, found)
    with pytest.raises(InputError, match="of one metric"):
        from_patching_result(to_patching_result({"P": found}), found)
