"""Table 2 counts different items, not occurrences."""

from support.records import GAZI, changed

from tl_rome.counterfact import CounterFactRecord
from tl_rome.counterfact.report.composition import tabulate_composition

SAME_BUT = changed("case_id", value=7)
OTHER_RELATION = changed("requested_rewrite", "relation_id", value="P1")
OTHER_RELATION["case_id"] = 8
RECORDS = [CounterFactRecord.from_dict(data) for data in (GAZI, SAME_BUT, OTHER_RELATION)]


def test_composition_counts_items_once():
    rows = {row[0]: row[1:] for row in tabulate_composition(RECORDS).rows}
    assert rows["Records"] == ("3.0", "1.5", "1.0")
    assert rows["Entities"] == ("1.0", "1.0", "1.0")
    assert rows["Paraphrase Prompts"] == ("2.0", "2.0", "2.0")
    assert rows["Generation Prompts"] == ("1.0", "1.0", "1.0")
    assert "3 records of 2 relations" in tabulate_composition(RECORDS).caption
