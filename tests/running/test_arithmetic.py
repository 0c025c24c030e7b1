"""float64 work goes where float64 is, and shortened float32 products are not silent."""

import pytest
import torch
from support.edits import REQUEST, editor
from support.families import KINDS
from support.without_float64 import lacking

from tl_rome.editors import KeyCovariance
from tl_rome.editors.covariance.moments import KeyMoments
from tl_rome.editors.rank_one.closed_form import Memory
from tl_rome.running.arithmetic import float64_device, in_float64
from tl_rome.running.borrowed import borrowed


@pytest.fixture
def parts():
    """W_out, bias, statistics, two keys and a value, in float32 numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    keys = draw(200, 12).double()
    return draw(12, 5), draw(5), KeyCovariance(keys.T @ keys / 200, 0, 200, "x", False, "m"), draw(2, 12), draw(5)


def test_a_device_without_float64_leaves_the_work_to_the_cpu(parts):
    weight, bias, statistics, keys, value = parts
    with pytest.raises(TypeError, match="no float64"):
        lacking(weight).double()
    assert float64_device(lacking(weight).device) == torch.device("cpu")
    assert torch.equal(in_float64(lacking(weight)), weight.double())
    expected = Memory(weight, bias, statistics).insert(*keys, value)
    found = Memory(lacking(weight), lacking(bias), statistics).insert(*lacking(keys), lacking(value))
    for name, figure in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), figure, rtol=1e-10, atol=0)


def test_the_closed_form_agrees_with_plain_linear_algebra(parts):
    weight, bias, statistics, (direction, key), value = parts
    found = Memory(weight, bias, statistics).insert(direction, key, value)
    u = torch.linalg.inv(statistics.second_moment) @ direction.double()
    u /= u.norm()
    v = (value.double() - bias.double() - key.double() @ weight.double()) / (key.double() @ u)
    torch.testing.assert_close(found.u, u, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.v, v, rtol=1e-10, atol=1e-12)
    assert found.key_norm == pytest.approx(direction.norm().item())


def test_the_factor_is_made_once_for_all_edits(tiny, monkeypatch):
    model, made, own = tiny("gpt2", KINDS[0]), [], torch.linalg.cholesky_ex
    ready = editor(model)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda moment: made.append(moment) or own(moment))
    ready(model, REQUEST)
    ready.each(model, [REQUEST, REQUEST], progress=False)
    assert len(made) == 1


def test_sums_on_a_device_without_float64_are_on_the_cpu():
    moments, plain = (
        KeyMoments({0: torch.zeros(9, 9, dtype=torch.float64)}, {0: torch.zeros(9, dtype=torch.float64)}, 20, 1)
        for _ in range(2)
    )
    keys = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    moments.add(0, lacking(keys))
    plain.add(0, keys)
    assert torch.equal(moments.moment(0), plain.moment(0))
    torch.testing.assert_close(moments.moment(0), keys.double().T @ keys.double() / 20, rtol=1e-5, atol=1e-6)


@pytest.fixture
def medium():
    """Torch's switch, whose effect depends on the processor."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("medium")
@pytest.mark.parametrize("kind", KINDS)
def test_shortened_products_are_said_once_for_each_float32_model(fresh_tiny, kind, caplog):
    model, half = fresh_tiny("gpt2", kind), fresh_tiny("gpt2", kind, torch.bfloat16)
    for each in (half, model, model):
        with borrowed(each), borrowed(each):
            pass
    assert caplog.text.count("matrix products of float32 models in bf16") == 1


def test_nothing_is_said_of_float32_as_it_is(fresh_tiny, caplog):
    with borrowed(fresh_tiny("gpt2", KINDS[0])):
        pass
    assert not caplog.records
