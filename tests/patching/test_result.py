import re
from base64 import b64decode
from dataclasses import fields, replace
from io import BytesIO

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image
from support.trace_example import RESULT

from tl_rome import patching
from tl_rome.errors import NumericsError, StorageError
from tl_rome.patching import TraceResult
from tl_rome.storage import files as storage


def test_effects_are_differences_from_the_corrupted_score():
    torch.testing.assert_close(RESULT.effects, torch.arange(24, dtype=torch.float64).view(8, 3) / 30)
    assert RESULT.total_effect == pytest.approx(0.8)


@pytest.mark.parametrize(("layer", "position"), [(0, 0), (5, 2), (7, 1)])
def test_the_strongest_cell_is_layer_then_position(layer, position):
    scores = RESULT.scores.clone()
    scores[layer, position] = 0.95
    assert replace(RESULT, scores=scores).strongest() == (layer, position, 0.95, None)


def with_heads():
    scores = torch.full((8, 3, 2), 0.1, dtype=torch.float64)
    scores[5, 1, 1] = 0.7
    return replace(RESULT, scores=scores, units=("0", "1"), component="attn.hook_z")


def test_the_strongest_unit_has_its_label():
    assert with_heads().strongest() == (5, 1, 0.7, "1")


def test_a_trace_in_one_line():
    text = repr(with_heads())
    assert repr(with_heads().scores) not in text
    assert "\n" not in text
    for part in (
        "attn.hook_z",
        RESULT.prompt,
        RESULT.answer,
        "8 x 3 x 2",
        "0.7 at layer 5",
        RESULT.labels[1],
        "unit 1",
    ):
        assert part in text
    assert " unit " not in repr(RESULT)


def test_notebooks_show_the_heat_map(monkeypatch):
    drawn, plot = [], patching.plot_trace
    monkeypatch.setattr(patching, "plot_trace", lambda result: drawn.append(result) or plot(result))
    html = replace(with_heads(), prompt="a < b", answer=" <c>")._repr_html_()
    assert drawn[0].units
    assert "attn.hook_z of 'a &lt; b'" in html.replace("&#x27;", "'")
    image = Image.open(BytesIO(b64decode(re.search(r'base64,([^"]+)"', html)[1])))
    assert image.format == "PNG"
    assert image.width > 300
    assert not plt.get_fignums()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused(value):
    scores = RESULT.scores.clone()
    scores[0, 2] = value
    with pytest.raises(NumericsError, match="score is not finite"):
        replace(RESULT, scores=scores)


def test_round_trip(tmp_path):
    result = replace(RESULT, answer=" 東京", window=10, component="mlp_out")
    found = TraceResult.load(result.save(tmp_path / "trace.safetensors"))
    assert torch.equal(found.scores, result.scores)
    assert found.scores.dtype == torch.float64
    for name in (field.name for field in fields(TraceResult) if field.name != "scores"):
        assert getattr(found, name) == getattr(result, name)
        assert type(getattr(found, name)) is type(getattr(result, name))


def test_a_trace_saved_under_the_methods_earlier_name_is_read(tmp_path):
    path = RESULT.save(tmp_path / "trace.safetensors")
    tensors, header = storage.load(path, "trace")
    storage.save(path, "trace", tensors, {**header, "method": "sweep"})
    assert TraceResult.load(path).method == "incremental"


def test_damaged_and_other_files_are_refused(tmp_path):
    path = RESULT.save(tmp_path / "trace.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StorageError, match=r"trace.safetensors is damaged .*; make it again"):
        TraceResult.load(path)
    storage.save(path, "edit", {"scores": RESULT.scores}, {})
    with pytest.raises(StorageError, match="holds 'edit' in schema 2, not 'trace'"):
        TraceResult.load(path)


@pytest.mark.parametrize("missing", ["scores", "subject", "labels", "answer"])
def test_a_file_that_lacks_a_part_is_damaged(tmp_path, missing):
    path = RESULT.save(tmp_path / "trace.safetensors")
    tensors, header = ({k: v for k, v in part.items() if k != missing} for part in storage.load(path, "trace"))
    storage.save(path, "trace", {**tensors, "other": RESULT.scores}, header)
    with pytest.raises(StorageError, match=f"trace.safetensors lacks part of a trace .*{missing}.*; make it again"):
        TraceResult.load(path)
