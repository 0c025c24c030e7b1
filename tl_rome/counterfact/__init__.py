"""Measuring what an edit did: COUNTERFACT and its metrics (sections 2.3, 5 and 6, appendices B.2, C and D)."""

from tl_rome.counterfact.builder import BuilderConfig as BuilderConfig
from tl_rome.counterfact.builder import build_records as build_records
from tl_rome.counterfact.columns import COLUMNS as COLUMNS
from tl_rome.counterfact.columns import PAPER_COLUMNS as PAPER_COLUMNS
from tl_rome.counterfact.evaluation import Editor as Editor
from tl_rome.counterfact.evaluation import evaluate as evaluate
from tl_rome.counterfact.measure import EvaluationConfig as EvaluationConfig
from tl_rome.counterfact.records import CounterFactRecord as CounterFactRecord
from tl_rome.counterfact.records import RequestedRewrite as RequestedRewrite
from tl_rome.counterfact.records import Target as Target
from tl_rome.counterfact.references import ReferenceTexts as ReferenceTexts
from tl_rome.counterfact.references import load_references as load_references
from tl_rome.counterfact.relations import read_pararel as read_pararel
from tl_rome.counterfact.results import CaseResult as CaseResult
from tl_rome.counterfact.results import Divergence as Divergence
from tl_rome.counterfact.results import Generation as Generation
from tl_rome.counterfact.results import Measurement as Measurement
from tl_rome.counterfact.results import PromptScores as PromptScores
from tl_rome.counterfact.run_store import load_results as load_results
from tl_rome.counterfact.sources import load_counterfact as load_counterfact
from tl_rome.counterfact.statistics import composition as composition
from tl_rome.counterfact.statistics import criteria as criteria
from tl_rome.counterfact.summary import Summary as Summary
from tl_rome.counterfact.summary import summarize as summarize
from tl_rome.counterfact.wikidata import WikiDataNeighbors as WikiDataNeighbors
