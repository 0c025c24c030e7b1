"""The network of KE against the released modules' own arrays, and its low-rank change against the dense formula."""

from dataclasses import replace

import pytest
import torch
from support.families import KINDS
from support.golden import golden_arrays
from transformers import GPT2Config, GPT2LMHeadModel

from tl_rome.editors.trained.ke.config import KE
from tl_rome.editors.trained.ke.network import KeNetwork
from tl_rome.editors.trained.passes.products import OuterProducts

MATRICES = ("h.1.mlp.c_proj", "h.1.mlp.c_fc", "h.2.mlp.c_proj", "h.2.mlp.c_fc")
SIZES = ((32, 8), (8, 32), (32, 8), (8, 32))


@pytest.fixture(scope="module")
def golden(shared_data):
    return golden_arrays(shared_data, "ke")


@pytest.fixture(scope="module")
def network(golden):
    config = replace(KE, hidden=6, condition=5, own_embedding=True)
    made = KeNetwork(SIZES, 8, config, torch.Generator(), golden["embedding"]).double()
    parts = {name: golden[name] for name in golden if name.startswith(("lstm.", "linear."))}
    for place, name in enumerate(MATRICES):
        for layer in (0, 1):
            for part in ("g", "v", "bias"):
                parts[f"heads.{place}.{2 * layer}.{part}"] = golden[f"head.{name}.{layer}.{part}"]
    made.load_state_dict({"embedding": golden["embedding"], **parts})
    return made


def gpt2(golden):
    """Plain transformers, with the reference's weights."""
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=8, n_layer=3, n_head=2, n_inner=32)
    model = GPT2LMHeadModel(config).double().eval()
    weights = {name.removeprefix("W."): value for name, value in golden.items() if name.startswith("W.")}
    assert not model.transformer.load_state_dict(weights).unexpected_keys
    return model


def target_nll(logits, ids, count):
    return -logits[0, -1 - count : -1].log_softmax(-1).gather(1, ids[0, -count:, None]).mean()


def inputs_and_gradients(model, golden):
    """The inner loss, and the rows of each matrix's gradient, by hooks of torch."""
    found: dict[str, list] = {name: [] for name in MATRICES}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            found[name] += [inputs[0].detach(), output]

        return hook

    handles = [model.transformer.get_submodule(name).register_forward_hook(keep(name)) for name in MATRICES]
    loss = target_nll(model(golden["ids"]).logits, golden["ids"], int(golden["n_target"]))
    loss.backward()
    for handle in handles:
        handle.remove()
    kept = [(x[0], output.grad[0], (output.grad[0] != 0).any(dim=1)) for x, output in found.values()]
    return loss.detach(), [OuterProducts(x[rows], delta[rows], 0 * rows.nonzero()[:, 0]) for x, delta, rows in kept]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_every_array_of_the_released_modules(golden, network):
    ids, model = golden["ids"], gpt2(golden)
    loss, gradients = inputs_and_gradients(model, golden)
    close(loss, golden["inner_nll"])
    close(network.condition([*ids])[0], golden["condition"])
    weights, edited = dict(model.transformer.named_parameters()), {}
    for name, head, gradient, change in zip(
        MATRICES, network.heads, gradients, network(gradients, [*ids]), strict=True
    ):
        close(gradient.left.T @ gradient.right, golden[f"gradient.{name}"])
        close(head(golden["condition"]), golden[f"raw.{name}"])
        update = change.left.T @ change.right
        close(update, golden[f"update.{name}"])
        assert len(change.owners) == 1 + len(gradient.owners) >= torch.linalg.matrix_rank(update)
        edited[f"transformer.{name}.weight"] = weights[f"{name}.weight"].detach() + update
    outer = target_nll(torch.func.functional_call(model, edited, (ids,)).logits, ids, int(golden["n_target"]))
    close(outer, golden["l_edit"])
    network.zero_grad()
    outer.backward()
    close(network.heads[3][0].v.grad, golden["grad.head.h.2.mlp.c_fc.0.v"])
    close(network.heads[3][2].v.grad, golden["grad.head.h.2.mlp.c_fc.1.v"])
    close(network.linear.weight.grad, golden["grad.linear.weight"])
    close(network.embedding.grad, golden["grad.embedding"])
    assert not network.embedding.grad[0].any(), "token 0 is padding to the released code"


def test_many_texts_at_once(golden, network):
    lengths = golden["padded_mask"].sum(dim=1).tolist()
    texts = [ids[:length] for ids, length in zip(golden["padded_ids"], lengths, strict=True)]
    assert len(set(lengths)) > 1
    close(network.condition(texts), golden["padded_conditions"])


def gradients_of_three(rng):
    """Rows of three edits, the second of which has none."""
    owners = torch.tensor([0, 0, 0, 2, 2])
    left, right = (torch.randn(5, width, generator=rng, dtype=torch.float64) for width in (5, 3))
    return OuterProducts(left, right, owners)


@pytest.mark.parametrize("side", ["d_in", "d_out"])
def test_rows_are_the_dense_formula(side):
    rng = torch.Generator().manual_seed(0)
    config = replace(KE, hidden=6, condition=7, softmax_over=side, max_scale=0.7, own_embedding=True)
    table = torch.randn(600, 4, generator=rng)
    network = KeNetwork([(5, 3)], 4, config, rng, table).double()
    gradient, texts = gradients_of_three(rng), [torch.tensor(ids) for ids in ([5, 9, 0], [7], [3, 4])]
    (change,) = network([gradient], texts)
    assert change.owners.tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    soft, plain = (5, 3) if side == "d_in" else (3, 5)
    for edit, text in enumerate(texts):
        c_a, r_a, c_b, r_b, e = network.heads[0](network.condition([text])[0]).split((plain, soft, plain, soft, 1))
        gates = [torch.outer(r.softmax(0), c) for r, c in ((r_a, c_a), (r_b, c_b))]
        gates = gates if side == "d_in" else [gate.T for gate in gates]
        (x, delta), (left, right) = gradient.of(edit), change.of(edit)
        close(left.T @ right, 0.7 * torch.sigmoid(e) * (x.T @ delta * gates[0] + gates[1]))


def test_the_models_embeddings_are_read_and_not_kept(tiny):
    model, config = tiny("gpt2", KINDS[0]), replace(KE, hidden=6)
    table = model.embed(torch.arange(600)[None])[0]
    network = KeNetwork([(5, 3)], 32, config, torch.Generator().manual_seed(0))
    own = KeNetwork([(5, 3)], 32, replace(config, own_embedding=True), torch.Generator(), table)
    assert own.state_dict().keys() - network.state_dict().keys() == {"embedding"}
    own.load_state_dict(network.state_dict(), strict=False)
    texts = [torch.tensor([3, 0, 599]), torch.tensor([2])]
    found = network.reading(model).condition(texts)
    assert torch.equal(own.condition(texts), found)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert network.linear.weight.grad.any(), "both names are one network"


def test_starts_as_torch_does_and_follows_the_generator():
    made = [KeNetwork([(5, 3)], 4, KE, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    first, again, other = (network.state_dict() for network in made)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    fans = {"lstm": 512, "linear": 1024, "heads.0.0": 768, "heads.0.2": 512}
    for name, value in first.items():
        if not name.endswith(".g"):
            bound = next(fan for start, fan in fans.items() if name.startswith(start)) ** -0.5
            assert value.abs().max() <= bound
            assert value.numel() < 100 or value.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    torch.testing.assert_close(first["heads.0.2.g"][:, 0], first["heads.0.2.v"].norm(dim=1))
