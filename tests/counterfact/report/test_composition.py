"""Tables 1 and 2 count different items, not occurrences."""

from support.records import GAZI, changed

from tl_rome.counterfact import CounterFactRecord
from tl_rome.counterfact.report.composition import CRITERIA, composition, criteria

SAME_BUT = changed("case_id", value=7)
OTHER_RELATION = changed("requested_rewrite", "relation_id", value="P1")
OTHER_RELATION["case_id"] = 8
RECORDS = [CounterFactRecord.from_dict(data) for data in (GAZI, SAME_BUT, OTHER_RELATION)]


def test_composition_counts_items_once():
    rows = {row[0]: row[1:] for row in composition(RECORDS).rows}
    assert rows["Records"] == ("3.0", "1.5", "1.0")
    assert rows["Entities"] == ("1.0", "1.0", "1.0")
    assert rows["Paraphrase Prompts"] == ("2.0", "2.0", "2.0")
    assert rows["Generation Prompts"] == ("1.0", "1.0", "1.0")
    assert "3 records of 2 relations" in composition(RECORDS).caption


def test_criteria_need_a_test_in_every_record():
    grid = criteria(RECORDS, "CF")
    assert [row[0] for row in grid.rows] == list(CRITERIA)
    assert [row[-1] for row in grid.rows] == ["✓"] * 5
    assert grid.rows[1] == ("Generalization", "✓", "✓", "✓", "✗", "✓", "✓")
    assert grid.rows[2] == ("Bleedover", "✗", "✗", "✗", "✗", "✗", "✓")
    without = changed("neighborhood_prompts", value=[])
    without["case_id"] = 9
    some = criteria([*RECORDS, CounterFactRecord.from_dict(without)], "CF")
    assert [row[-1] for row in some.rows] == ["✓", "✓", "✗", "✓", "✓"]
