import pytest
import torch
from support.families import FAMILIES, KINDS

from tl_rome.errors import ModelUnavailableError
from tl_rome.models.conversion import lay_out

pytestmark = pytest.mark.skipif("hooked" not in KINDS, reason="this TransformerLens has no HookedTransformer")


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_changes_where_weights_lie_and_nothing_else(fresh_tiny, family):
    model, tokens = fresh_tiny(family, "hooked"), torch.arange(12).reshape(2, 6)
    before = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in model.named_parameters()}
    expected = model(tokens)
    for weight in model.parameters():
        weight.data = weight.data.contiguous()
    torch.testing.assert_close(model(tokens), expected)
    lay_out(model)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
    assert torch.equal(model(tokens), expected)


def test_a_loaded_model_copies_no_large_weight(tiny):
    model = tiny("llama", "hooked")
    block = model.blocks[0]
    assert all(weight.T.is_contiguous() for weight in (model.W_U, block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out))
    assert block.attn.W_Q.transpose(1, 2).is_contiguous()
    assert block.attn.W_O.permute(2, 0, 1).is_contiguous()


@pytest.mark.parametrize("place", ["missing", "/dev/full"])
def test_a_temporary_folder_that_cannot_be_written(fresh_tiny, monkeypatch, tmp_path, place):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / place))
    with pytest.raises(ModelUnavailableError, match=r"cannot write a temporary folder.*TMPDIR"):
        fresh_tiny("gpt2", "hooked")
