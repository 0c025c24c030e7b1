"""Statistics of made-up effects and scores, against numpy's least squares and correlations, and pandas' ranks."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import torch
from support.localization import LAYERS, made_report

from tl_rome.counterfact import LocalizationReport, plot_localization, plot_localization_by_layer
from tl_rome.counterfact.experiments.localization.plot import localization_figure
from tl_rome.counterfact.experiments.localization.scores import SCORES, edit_scores
from tl_rome.counterfact.results import Measurement, PromptScores
from tl_rome.errors import InputError, StorageError

pytestmark = pytest.mark.leg("3.9")


def r_squared(y, *columns):
    """R^2 of least squares on some columns, by numpy."""
    design = np.stack(columns, axis=1)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return 1 - residual.var() / y.var()


def probs(*values):
    return PromptScores(tuple(map(math.log, values)), (-1.0,) * len(values), (1,) * len(values), (1,) * len(values))


def test_edit_scores_by_hand():
    before = Measurement(probs(0.2), probs(0.5, 0.1), probs(0.1, 0.6))
    after = Measurement(probs(0.6), probs(0.75, 0.05), probs(0.4, 0.3))
    rewrite, paraphrase, kept = 0.5, (0.5 + 0) / 2, ((1 - 0.3 / 0.9) + (1 - 0.3 / 0.6)) / 2
    overall = 3 / (1 / rewrite + 1 / paraphrase + 1 / kept)
    assert edit_scores(before, after, "released") == pytest.approx((rewrite, paraphrase, kept, overall))
    bare = [Measurement(each.rewrite, each.paraphrase, probs()) for each in (before, after)]
    found = edit_scores(*bare, "released")
    assert math.isnan(found[2])
    assert found[3] == pytest.approx(2 / (1 / rewrite + 1 / paraphrase))
    assert edit_scores(after, before, "released")[3] == 0


@pytest.mark.parametrize("link", [0.0, 0.3])
def test_what_the_trace_explains_is_what_least_squares_say(link):
    report = made_report(link=link)
    fits = {(each.component, each.score): each for each in report.explained}
    assert set(fits) == {(component, score) for component in report.components for score in SCORES}
    for index, component in enumerate(report.components):
        fit = fits[component, "rewrite"]
        x, y = report.effects[index].flatten().numpy(), report.scores[0].flatten().numpy()
        dummies = [np.tile(np.eye(3)[place], report.n) for place in range(3)]
        assert fit.layer_only == pytest.approx(r_squared(y, *dummies))
        assert fit.both == pytest.approx(r_squared(y, *dummies, x))
        assert fit.trace_only == pytest.approx(r_squared(y, np.ones_like(x), x))
        assert fit.gain.mean == pytest.approx(fit.both - fit.layer_only)
        assert fit.slope == pytest.approx(np.linalg.lstsq(np.stack([*dummies, x], 1), y, rcond=None)[0][-1])
        assert fit.gain.low <= fit.gain.mean <= fit.gain.high
    first = fits["mlp_out", "rewrite"]
    if link:
        assert first.slope == pytest.approx(link, abs=0.05)
        assert first.gain.low > first.random.high
        assert first.p_random == pytest.approx(1 / 1001)
    else:
        assert first.random.low < first.gain.mean < first.random.high
        assert first.p_random > 0.05


def test_the_random_layer_control_keeps_facts_and_loses_layers():
    """An effect that is the same at all layers of a fact gains as much in any order."""
    effects = torch.rand(2, 12, 1, generator=torch.Generator().manual_seed(0)).double().expand(-1, -1, 3).contiguous()
    fit = made_report(effects=effects).explained[0]
    assert fit.random.low == pytest.approx(fit.gain.mean)
    assert fit.random.high == pytest.approx(fit.gain.mean)
    assert fit.p_random == 1


def test_correlations_are_those_of_numpy_and_of_ranks():
    report = made_report(link=0.2)
    rows = [each for each in report.correlations if (each.component, each.score) == ("mlp_out", "overall")]
    assert [row.layer for row in rows] == list(LAYERS)
    for place, row in enumerate(rows):
        x, y = report.effects[0, :, place].numpy(), report.scores[-1, :, place].numpy()
        ranks = [pandas.Series(values).rank() for values in (x, y)]
        assert row.pearson.mean == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert row.spearman.mean == pytest.approx(np.corrcoef(*ranks)[0, 1])
        for each in (row.pearson, row.spearman):
            assert -1 <= each.low <= each.mean <= each.high <= 1


def test_no_correlation_is_a_correlation_of_zero():
    effects = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()[None, :, None].expand(2, -1, 3).contiguous()
    scores = torch.tensor([2.0, 4.0, 1.0, 3.0]).double()[None, :, None].expand(4, -1, 3).contiguous()
    row = made_report(4, effects=effects, scores=scores).correlations[0]
    assert (row.pearson.mean, row.spearman.mean) == (0, 0)
    assert (row.pearson.n, row.spearman.n) == (4, 4)


def test_what_does_not_vary_has_no_correlation_and_explains_nothing():
    report = made_report(effects=torch.full((2, 12, 3), 0.25, dtype=torch.float64))
    assert all(row.pearson.n == row.spearman.n == 0 for row in report.correlations)
    assert all(fit.gain.mean == fit.trace_only == 0 for fit in report.explained)
    assert report.grids()[2].rows[0][1:] == ("-", "-")


def test_layers_are_chosen_on_held_out_facts_and_judged_on_the_others():
    report = made_report()
    held, others = report.held_out, ~report.held_out
    assert report.layer == 4
    ways = {way.name: way for way in report.choices}
    best, peak, own, random = (
        ways[name] for name in ("best edits", "peak of mlp_out", "each fact's peak of mlp_out", "random layer")
    )
    overall = report.scores[-1]
    assert best.scores[-1].mean == pytest.approx(overall[others, 1].mean().item())
    place = int(report.effects[0][held].mean(0).argmax())
    assert (peak.layer, peak.scores[-1].n) == (LAYERS[place], 6)
    assert peak.scores[-1].mean == pytest.approx(overall[others, place].mean().item())
    each = overall.gather(1, report.effects[0].argmax(1, keepdim=True))[others]
    assert (own.layer, own.scores[-1].mean) == (None, pytest.approx(each.mean().item()))
    assert random.scores[-1].mean == pytest.approx(overall[others].mean().item())
    turned = overall.clone()
    turned[others] = turned[others].flip(1)  # facts that are not held out have no say
    assert made_report(scores=torch.stack([*report.scores[:-1], turned])).layer == 4


def test_facts_without_prompts_of_a_group_are_left_out_of_its_score_only():
    scores = made_report().scores.clone()
    scores[2, 1] = torch.nan
    report = made_report(scores=scores)
    counts = {fit.score: fit.n for fit in report.explained}
    assert counts == {"rewrite": 12, "paraphrase": 12, "neighborhood": 11, "overall": 12}
    assert [each.n for each in report.choices[0].scores] == [6, 6, 5, 6]
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_report_as_a_frame_and_as_tables():
    report = made_report()
    frame = report.to_frame()
    assert list(frame) == ["case_id", "prompt", "held_out", "layer", *report.components, *SCORES]
    assert len(frame) == 36
    row = frame[(frame.case_id == 103) & (frame.layer == 6)].iloc[0]
    assert (row.resid_post, row.overall) == (report.effects[1, 3, 2].item(), report.scores[3, 3, 2].item())
    assert not row.held_out
    layers, fits, correlations = report.grids(["overall"])
    assert layers.header == ("layer by", "layer", "overall")
    assert layers.rows[0][:2] == ("best edits", "4")
    assert [each[0] for each in fits.rows] == ["mlp_out, overall", "resid_post, overall"]
    assert len(correlations.rows) == 6
    with pytest.raises(InputError, match="no score 'ES'; choose among rewrite"):
        report.grids(["ES"])


def test_a_report_is_saved_and_read(tmp_path):
    report = made_report()
    again = LocalizationReport.load(report.save(tmp_path / "report.safetensors"))
    assert again.to_dict() == report.to_dict()
    assert again.effects.equal(report.effects)
    assert again.left_out == report.left_out
    with pytest.raises(StorageError):
        LocalizationReport.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": torch.zeros(12, dtype=torch.bool)}, "12 facts, 0 of them held out"),
        ({"layers": (1, 4)}, "parts of a report have shapes"),
        ({"facts": 3}, "3 facts, 2 of them held out, at 3 layers; give at least 4"),
    ],
    ids=["split", "layers", "few"],
)
def test_impossible_parts_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        made_report(**changes)


def test_pictures_show_effects_and_scores():
    report = made_report(link=0.2)
    figure, (left, right) = plt.subplots(1, 2)
    assert plot_localization(report, left, component="resid_post") is left
    points = left.collections[0].get_offsets()
    assert sorted(points[:, 0]) == pytest.approx(sorted(report.effects[1].flatten().tolist()))
    assert left.get_xlabel() == "effect of restoring resid_post"
    assert plot_localization_by_layer(report, right, score="rewrite", title="mine") is right
    assert list(right.get_lines()[0].get_ydata()) == pytest.approx(report.scores[0].mean(0).tolist())
    assert right.get_title() == "mine"
    with pytest.raises(InputError, match="has no 'attn_out'; choose among mlp_out, resid_post"):
        plot_localization(report, left, component="attn_out")
    plt.close(figure)
    localization_figure(report).canvas.draw()
