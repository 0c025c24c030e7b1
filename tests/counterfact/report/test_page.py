"""The page of a run: its figures are the table's, its texts are escaped, and nothing in it loads anything."""

import base64
import json
import math
import re
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from io import BytesIO

import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.records import GAZI, changed
from support.results import case, measurement

from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.page import write_report
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import UNEDITED, Generation
from tl_rome.errors import InputError

EVIL = "<script>alert('x')</script> & \"friends\""
TEXTS = (Generation(GAZI["generation_prompts"][0], " trees & <b>birds</b>"),)
BEFORE = measurement(False, [False, False], [True, True], generations=(replace(TEXTS[0], continuation=" walls"),))
HOLDS = measurement(True, [True, True], [True, True], generations=TEXTS)
LEAKS = measurement(True, [True, True], [True, False], generations=TEXTS)
RESULTS = [
    case(1067, HOLDS, BEFORE),
    case(1068, LEAKS, BEFORE),
    case(1067, LEAKS, BEFORE, editor="ft"),
    case(1068, None, BEFORE, editor="ft", error=f"NumericsError: {EVIL}"),
    case(1069, HOLDS, BEFORE),
]
RECORDS = [CounterFactRecord.from_dict(changed("case_id", value=number)) for number in (1067, 1068, 1069)]
_EMPTY = ("meta", "input", "img", "link", "br", "hr")


@pytest.fixture
def page_of(tmp_path):
    """Gives a function that makes the text of a page."""

    def make(results, summary=None, **options):
        path = write_report(tmp_path / "report.html", results, summary or summarize(results), **options)
        return path.read_text("utf-8")

    return make


class Page(HTMLParser):
    """Elements of a page in order as (tag, attributes, own text); unbalanced tags are refused."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in _EMPTY:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2] += data

    def texts(self, tag, **wanted):
        return [text.strip() for name, attrs, text in self.elements if name == tag and wanted.items() <= attrs.items()]

    def attributes(self, tag, name):
        return [attrs[name] for found, attrs, _ in self.elements if found == tag and name in attrs]


def test_the_tables_are_those_of_the_summary(page_of):
    page, summary = Page(page_of(RESULTS, records=RECORDS)), summarize(RESULTS)
    cells = page.texts("td")
    for row in (*summary.grid(("S", "ES", "PS", "NS")).rows, *summary.differences(columns=("ES", "NS")).rows):
        assert set(row) <= set(cells)
    draft = summarize(RESULTS, conventions="draft")
    assert draft.grid().caption in Page(page_of(RESULTS, summary=draft)).texts("caption")


def test_the_heading_says_what_is_known_of_the_run(page_of):
    made = {
        "editor": "Rome",
        "covariance": {"digest": "0f", "layer": 5},
        "contexts": ["a"] * 7,
        "config": {"clamp": None},
    }
    settings = {
        "seed": 3,
        "records": 9,
        "editor_settings": {**made, "config": {"learning_rate": 0.5, "sum_nll": False}},
    }
    page = Page(page_of([replace(RESULTS[0], settings=settings)], about={"Model": "gpt2-xl"}))
    about = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert about["Model"] == "gpt2-xl"
    assert about["Records"] == f"1 of 9, data set {RESULTS[0].dataset}"
    assert (about["Seed"], about["Date"]) == ("3", f"page written on {date.today().isoformat()}")
    assert about["rome"] == "editor Rome, covariance layer 5, contexts (7), config learning rate 0.5, sum nll no"
    plain = Page(page_of(RESULTS))
    assert plain.texts("dd")[0] == f"fingerprint {RESULTS[0].model}"
    assert not {"Seed", "rome"} & {*plain.texts("dt")}


def test_badges_can_wrap(page_of):
    assert not re.search(r"</span><span class=.badge", page_of(RESULTS))


def test_every_record_shows_prompts_probabilities_and_texts_of_all_models(page_of):
    page = Page(page_of(RESULTS[:3], records=RECORDS))
    cells = page.texts("td")
    for prompt in (*RECORDS[0].paraphrase_prompts, *RECORDS[0].neighborhood_prompts, RECORDS[0].request.fact.prompt):
        assert cells.count(prompt) == 2
    likely, less = f"{math.exp(-1):.3f}", f"{math.exp(-2):.3f}"
    first = cells.index(RECORDS[0].request.fact.prompt)
    assert cells[first + 1 : first + 4] == [f"{less} / {likely}", f"{likely} / {less}", f"{likely} / {less}"]
    assert (len(page.texts("td", **{"class": "bad e e1"})), len(page.texts("td", **{"class": "bad e e0"}))) == (1, 1)
    assert page.texts("p", **{"class": "prompt"}) == [TEXTS[0].prompt] * 2
    assert page.texts("p", **{"class": "e e1"}) == ["trees & <b>birds</b>"]
    assert page.texts("p", **{"class": ""}) == ["walls"] * 2
    assert page.texts("span", **{"class": "who"}) == [UNEDITED, "rome", "ft", UNEDITED, "rome"]


def test_outcomes_by_editor_are_what_the_page_filters_by(page_of):
    page = Page(page_of(RESULTS))
    assert page.texts("option")[1:3] == ["rome", "ft"]
    assert [json.loads(found) for found in page.attributes("details", "data-outcomes")] == [
        [["success"], ["failure", "neighborhood"]],
        [["failure", "neighborhood"], ["failure", "error"]],
        [["success"], None],
    ]
    assert "neighborhood 2" in page.texts("td"), "prompts are numbered where the records are not given"


def test_an_edit_that_did_not_take_is_marked(page_of):
    judged = [replace(RESULTS[0], verdict="partly"), replace(RESULTS[1], verdict="took"), *RESULTS[2:]]
    page = Page(page_of(judged))
    assert page.texts("span", **{"class": "badge ok e e0"}) == ["rome: holds (edit: partly)", "rome: holds"]
    assert page.texts("span", **{"class": "badge bad e e0"}) == ["rome: fails in neighborhood"]
    assert "50.0 [0.0, 100.0]" in page.texts("td")


def test_what_records_models_and_errors_say_is_text(page_of):
    rewrite = replace(RESULTS[0].rewrite, subject=EVIL)
    paraphrases = (f"{EVIL} is", f"Where is {EVIL}?")
    record = replace(RECORDS[0], requested_rewrite=rewrite, paraphrase_prompts=paraphrases, generation_prompts=())
    odd = [replace(RESULTS[0], rewrite=rewrite), replace(RESULTS[2], rewrite=rewrite), *RESULTS[3:]]
    text = page_of(odd, records=[record], title=EVIL, figures={EVIL: b""})
    page, plain = Page(text), Page(page_of(RESULTS))
    assert len(page.texts("script")) == len(plain.texts("script")) == 1
    assert "<b>birds" not in text
    assert page.texts("h1") == page.texts("title") == [EVIL]
    assert f"{EVIL} is" in page.texts("td")
    assert f"NumericsError: {EVIL}" in page.texts("td")


def test_pictures_are_embedded_and_nothing_is_loaded(page_of):
    own = Figure()
    own.subplots().plot([1, 2])
    text = page_of(RESULTS, figures={"A curve": own, "As bytes": b"\x89PNG"})
    pictures = [found.removeprefix("data:image/png;base64,") for found in Page(text).attributes("img", "src")]
    assert len(pictures) == 3
    for picture in pictures[:2]:
        assert Image.open(BytesIO(base64.b64decode(picture))).width > 300
    assert base64.b64decode(pictures[2]) == b"\x89PNG"
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_unedited_model_alone_has_a_page(page_of):
    page = Page(page_of([case(1067, BEFORE, BEFORE, editor=UNEDITED, config="")], records=RECORDS))
    assert page.texts("option")[1] == UNEDITED
    assert page.texts("th", **{"class": "e e0"}) == [UNEDITED]


def test_records_of_another_run_are_refused(page_of, tmp_path):
    other = CounterFactRecord.from_dict(changed("requested_rewrite", "target_new", "str", value="Rome"))
    with pytest.raises(InputError, match="record 1067 is not the one that was evaluated"):
        page_of(RESULTS, records=[other])
    fewer = replace(RECORDS[0], neighborhood_prompts=())
    with pytest.raises(InputError, match="has 0 neighborhood prompts, and another number was evaluated"):
        page_of(RESULTS, records=[fewer])
    with pytest.raises(InputError, match="no results to report"):
        write_report(tmp_path / "none.html", [], summarize(RESULTS))
    assert not list(tmp_path.iterdir())


def test_a_large_run_stays_small(tmp_path):
    texts = tuple(Generation(f"{EVIL} {i}", " word" * 90) for i in range(10))
    full = measurement(True, [True] * 2, [True] * 10, generations=texts)
    results = [case(i, full, full, editor=f"editor {e}") for e in range(4) for i in range(100)]
    path = write_report(tmp_path / "deep" / "report.html", results, summarize(results))
    assert path.stat().st_size < 10e6


def test_free_answers_stand_under_a_heading_of_their_own(page_of):
    said = replace(HOLDS, free_rewrite=(Generation("It is in", " Glasgow, they say."),))
    page = Page(page_of([case(1067, said, BEFORE)], records=RECORDS[:1]))
    assert page.texts("h4") == ["What the model says by itself"]
    assert "Glasgow, they say." in page.texts("p", **{"class": "e e0"})
    assert "h4" not in [name for name, _, _ in Page(page_of(RESULTS)).elements]
