import json
from dataclasses import replace

import pytest
import torch
from support.average_example import LAYERS, average_of, made_trace

from tl_rome.errors import InputError
from tl_rome.patching.averaging.roles import ROLES
from tl_rome.patching.plots.frames import summary_frame, to_frame, view_trace

RESULT = made_trace(1, 4, 8)


def test_a_trace_as_a_table_has_a_row_for_each_cell():
    frame = to_frame(RESULT)
    assert list(frame.columns) == ["component", "layer", "position", "token", "subject", "score", "effect"]
    assert len(frame) == LAYERS * 8
    row = frame[(frame.layer == 3) & (frame.position == 2)].iloc[0]
    assert (row.token, row.subject, row.component) == (" t2", True, "mlp_out")
    assert row.score == RESULT.scores[3, 2].item()
    assert row.effect == pytest.approx(row.score - 0.1)
    assert frame[frame.subject].position.unique().tolist() == [1, 2, 3]


def test_units_get_a_column():
    scores = torch.rand(LAYERS, 8, 2, dtype=torch.float64)
    frame = to_frame(replace(RESULT, scores=scores, units=("head 0", "head 1")))
    row = frame[(frame.layer == 1) & (frame.position == 7) & (frame.unit == "head 1")]
    assert row.score.item() == scores[1, 7, 1].item()


def test_an_average_as_a_table_has_a_row_for_each_layer_and_role():
    average = average_of([made_trace(1, 3, 6, seed=seed) for seed in range(3)])
    frame = to_frame(average)
    assert len(frame) == LAYERS * len(ROLES)
    row = frame[(frame.layer == 2) & (frame.role == "last subject token")].iloc[0]
    assert (row.n, row.effect) == (3, average.effects[2, 2].item())
    assert row.low <= row.effect <= row.high
    middle = frame[frame.role == "middle subject tokens"]
    assert middle.effect.isna().all()
    assert (middle.n == 0).all()


def test_the_summary_has_the_averages_that_the_paper_quotes():
    averages = [
        average_of([made_trace(component=component, seed=seed) for seed in range(4)])
        for component in ("resid_post", "mlp_out")
    ]
    frame = summary_frame(averages).set_index("component")
    states, mlps = averages
    assert frame.role["resid_post"] == "last subject token"
    assert frame.layer["resid_post"] == states.peak("last subject token").layer
    assert frame.role["mlp_out"] == mlps.peak().role
    assert frame.effect["mlp_out"] == mlps.effects.max().item()
    assert frame.clean.tolist() == [average.clean_score for average in averages]
    assert frame.mean_maximum["mlp_out"] == mlps.mean_maximum()
    assert frame.mean_maximum_subject["mlp_out"] == mlps.mean_maximum("last subject token")


def test_the_view_shows_starred_tokens_and_effects_by_layer(monkeypatch):
    shown = {}
    monkeypatch.setattr("circuitsvis.tokens.render", lambda name, **data: shown.update(data, name=name))
    view_trace(RESULT)
    assert shown["tokens"] == [" t0", " t1*", " t2*", " t3*", *(f" t{position}" for position in range(4, 8))]
    assert shown["labels"] == [str(layer) for layer in range(LAYERS)]
    torch.testing.assert_close(shown["values"], RESULT.effects.T.float())


def test_the_view_is_html_that_holds_the_trace():
    html = str(view_trace(RESULT))
    assert "ColoredTokensMulti" in html
    assert json.dumps(" t1*") in html


def test_a_view_of_units_is_at_one_position():
    split = replace(RESULT, scores=torch.stack([RESULT.scores, RESULT.scores + 0.1], -1), units=("h0", "h1"))
    assert json.dumps([" h0", " h1"]) in str(view_trace(split))
    for options, place in (({}, split.strongest().position), ({"position": 0}, 0)):
        assert json.dumps(split.effects[:, place].T.float().tolist()) in str(view_trace(split, **options))
    with pytest.raises(InputError, match="is none of the prompt's, which are 0 to"):
        view_trace(split, position=len(RESULT.labels))
    with pytest.raises(InputError, match="no units"):
        view_trace(RESULT, position=1)
