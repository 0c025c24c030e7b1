"""Tables of many records: averages by hand, intervals that cover, pairing that helps, and omissions are reported."""

import dataclasses
import io
import math

import pytest
import rich.console
import torch
from support.results import case, measurement, scores

from tl_rome.counterfact.dataset.references import ReferenceText, ReferenceTexts
from tl_rome.counterfact.metrics.columns import COLUMNS
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import UNEDITED, Divergence, Generation
from tl_rome.errors import InputError

BEFORE = measurement(False, [False, False], [True, True, True, True])
RESULTS = [
    case(1, measurement(True, [True, True], [True, True, True, False]), BEFORE),
    case(2, measurement(True, [True, False], [True, False]), BEFORE),
    case(3, measurement(False, [False, False], [True, True]), BEFORE),
    case(4, None, BEFORE, error="the edit diverged"),
]


def means(row):
    return {name: estimate.mean for name, estimate in row.items()}


def test_means_are_over_prompts_then_records_and_s_is_of_the_averages():
    summary = summarize(RESULTS)
    rome, unedited = means(summary.rows["rome"]), means(summary.rows[UNEDITED])
    es, ps, ns = 200 / 3, 150 / 3, (75 + 50 + 100) / 3
    assert (rome["ES"], rome["PS"], rome["NS"]) == pytest.approx((es, ps, ns))
    assert rome["S"] == pytest.approx(3 / (1 / es + 1 / ps + 1 / ns))
    gain = 100 * (math.exp(-1) - math.exp(-2))
    assert rome["EM"] == pytest.approx(gain / 3)
    assert rome["NM"] == pytest.approx(gain * (0.5 + 0 + 1) / 3)
    assert (unedited["S"], unedited["ES"], unedited["NS"]) == (0, 0, 100)
    assert math.isnan(rome["GE"])
    assert summary.rows["rome"]["GE"].n == 0
    assert list(summary.rows["rome"]) == list(COLUMNS)


def test_failed_edits_are_named_and_left_out():
    summary = summarize(RESULTS)
    assert summary.failures == {"rome": {4: "the edit diverged"}}
    assert (summary.rows["rome"]["ES"].n, summary.rows[UNEDITED]["ES"].n) == (3, 4)
    assert summary.difference("rome")["ES"].n == 3
    assert "n = 4 records" in summary.grid().caption
    assert "1 failed edits are left out" in summary.grid().caption


def random_cases(n, editor, *, rate, seed, config="c"):
    """Records of which some are hard for every editor: those drawn from a common seed below the rate succeed."""
    hard = torch.rand(n, generator=torch.Generator().manual_seed(0))
    luck = 0.02 * torch.randn(n, generator=torch.Generator().manual_seed(seed))
    hits = (hard + luck < rate).tolist()
    return [
        case(i, measurement(hit, [hit], [True, hit]), BEFORE, editor=editor, config=config)
        for i, hit in enumerate(hits)
    ]


def test_an_interval_is_about_the_normal_one_for_many_records():
    results = random_cases(400, "rome", rate=0.7, seed=1)
    found = summarize(results).rows["rome"]["ES"]
    width = 1.96 * math.sqrt(found.mean * (100 - found.mean) / 400)
    assert found.high - found.mean == pytest.approx(width, rel=0.15)
    assert found.mean - found.low == pytest.approx(width, rel=0.15)
    wider = summarize(results, confidence=0.99).rows["rome"]["ES"]
    assert wider.low < found.low < found.high < wider.high


def test_pairing_removes_the_difficulty_of_records_from_a_difference():
    results = [*random_cases(300, "rome", rate=0.7, seed=1), *random_cases(300, "ft", rate=0.65, seed=2)]
    summary = summarize(results)
    rome, ft = summary.rows["rome"]["ES"], summary.rows["ft"]["ES"]
    difference = summary.difference("rome", "ft")["ES"]
    assert difference.mean == pytest.approx(rome.mean - ft.mean)
    unpaired = math.hypot(rome.high - rome.low, ft.high - ft.low)
    assert difference.high - difference.low < 0.6 * unpaired
    assert difference.low > 0
    opposite = summary.difference("ft", "rome")["ES"]
    assert (opposite.low, opposite.high) == pytest.approx((-difference.high, -difference.low))
    same = summary.difference("rome", "rome")["S"]
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_intervals_follow_the_seed_and_means_do_not_follow_the_order():
    results = random_cases(50, "rome", rate=0.5, seed=1)
    first, again, other = (summarize(results, resamples=30, seed=seed).rows["rome"]["S"] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert summarize(results[::-1]).rows["rome"]["S"].mean == pytest.approx(first.mean)


def test_one_record_gives_a_mean_and_an_interval_of_no_width():
    found = summarize(RESULTS[:1]).rows["rome"]["NS"]
    assert (found.mean, found.low, found.high, found.n) == (75, 75, 75, 1)


def test_generations_divergence_and_accuracy_have_their_columns():
    references = ReferenceTexts(
        {("P159", "Q4093"): (ReferenceText("a", "glasgow clyde"), ReferenceText("b", "ankara"))}
    )
    after = dataclasses.replace(
        measurement(True, [], [True]),
        rewrite=dataclasses.replace(scores((1.0, 2.0)), argmax_new=(True,)),
        neighborhood_plus=scores((2.0, 1.0), (1.0, 2.0)),
        generations=(Generation("x y", " z Glasgow"), Generation("a a", " a a Ankara")),
        essence_nll=math.log(20),
    )
    moved = Divergence((0.1, 0.3), (0.5,), 0.25)
    result = case(1, after, divergence=moved)
    found = means(summarize([result], references=references).rows["rome"])
    words_1 = (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2
    words_2 = (2 / 3 * (0.75 * math.log2(4 / 3) + 0.25 * 2) + 4 / 3 * (2 / 3 * math.log2(3 / 2) + math.log2(3) / 3)) / 2
    assert found["GE"] == pytest.approx(100 * (words_1 + words_2) / 2)
    draft = summarize([result], references=references, conventions="draft")
    assert means(draft.rows["rome"])["GE"] == pytest.approx(found["GE"] / 100)
    # Both texts of the vocabulary are equally rare; "Glasgow" and "Ankara" against "glasgow clyde ankara".
    assert found["RS"] == pytest.approx(100 * 2 / math.sqrt(2 * 3))
    assert (found["says o*"], found["says o^c"]) == (50, 50)
    assert (found["KL"], found["KL+"], found["drift"]) == pytest.approx((0.2, 0.5, 0.25))
    assert (found["EA"], found["NS+"], found["PPL"]) == pytest.approx((100, 50, 20))
    assert math.isnan(found["PS"])
    assert math.isnan(found["S"])


def test_tables_have_the_columns_of_the_source():
    summary = summarize(RESULTS, conventions="draft")
    grid = summary.grid()
    assert grid.header == ("editor", "n", "ES", "PS", "NS", "GE", "RS")
    assert [row[:2] for row in grid.rows] == [(UNEDITED, "4"), ("rome", "3")]
    assert summarize(RESULTS).grid().header[2:] == ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS")
    assert grid.markdown.startswith("| editor | n | ES |")
    assert "| - |" in grid.markdown
    assert "95% interval" in grid.caption
    differences = summary.differences(columns=("ES", "KL"))
    assert [row[:2] for row in differences.rows] == [("rome - unedited", "3")]
    assert "paired" in differences.caption
    assert len(grid.table.columns) == len(grid.header)


WIDE = summarize(RESULTS).grid()


@pytest.mark.parametrize("width", [40, *range(76, 100), 400])
def test_a_terminal_shows_whole_cells_however_narrow_it_is(width):
    grid = WIDE
    out = io.StringIO()
    console = rich.console.Console(width=width, file=out)
    console.print(*grid.tables(width), sep="\n")
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert all(cell in shown for row in (grid.header, *grid.rows) for cell in row)
    assert "…" not in shown
    assert (len(grid.tables(width)) == 1) == (width == 400)
    assert " ".join(shown.split()).count("conventions") == 1


def test_two_settings_of_one_editor_are_two_rows():
    results = [*random_cases(3, "rome", rate=1.0, seed=1), *random_cases(3, "rome", rate=0.0, seed=1, config="other")]
    assert set(summarize(results).rows) == {UNEDITED, "rome (c)", "rome (other)"}


def test_the_unedited_model_may_have_results_of_its_own():
    unedited = [dataclasses.replace(result, editor=UNEDITED, after=result.before, before=None) for result in RESULTS]
    alone, joined = summarize(RESULTS), summarize([*RESULTS, *unedited])
    assert list(joined.rows) == list(alone.rows)
    assert means(joined.rows[UNEDITED]) == pytest.approx(means(alone.rows[UNEDITED]), nan_ok=True)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "0 results are of 0 pairs"),
        ([RESULTS[0], dataclasses.replace(RESULTS[1], model="another")], "2 pairs of model and data set"),
        ([RESULTS[0], RESULTS[0]], "record 1 has two results of 'rome'"),
        ([RESULTS[3], RESULTS[3]], "record 4 has two results of 'rome'"),
    ],
)
def test_mixed_results_are_refused(results, message):
    with pytest.raises(InputError, match=message):
        summarize(results)


def test_unknown_names_are_refused():
    summary = summarize(RESULTS)
    with pytest.raises(InputError, match="no results of 'ft'; there are unedited, rome"):
        summary.difference("ft")
    with pytest.raises(InputError, match=r"there is no column XX; there are S, ES"):
        summary.grid(columns=("XX",))
