"""Measuring what an edit did: COUNTERFACT and its metrics (sections 2.3, 5 and 6, appendices B.2, C and D)."""

from tl_rome.counterfact.records import CounterFactRecord as CounterFactRecord
from tl_rome.counterfact.records import RequestedRewrite as RequestedRewrite
from tl_rome.counterfact.records import Target as Target
from tl_rome.counterfact.sources import load_counterfact as load_counterfact
