"""Measuring what an edit did: COUNTERFACT and its metrics (section 3.3, appendices D and H)."""

from tl_rome.arguments import guard
from tl_rome.counterfact.dataset.builder import BuilderConfig as BuilderConfig
from tl_rome.counterfact.dataset.builder import build_records as build_records
from tl_rome.counterfact.dataset.load import load_counterfact as load_counterfact
from tl_rome.counterfact.dataset.references import ReferenceTexts as ReferenceTexts
from tl_rome.counterfact.dataset.references import load_references as load_references
from tl_rome.counterfact.dataset.sample import load_sample_relations as load_sample_relations
from tl_rome.counterfact.dataset.training import record_examples as record_examples
from tl_rome.counterfact.dataset.training import training_records as training_records
from tl_rome.counterfact.dataset.wikidata import WikiDataNeighbors as WikiDataNeighbors
from tl_rome.counterfact.evaluation.evaluate import evaluate as evaluate
from tl_rome.counterfact.evaluation.measure import EvaluationConfig as EvaluationConfig
from tl_rome.counterfact.evaluation.processes import evaluate_in_processes as evaluate_in_processes
from tl_rome.counterfact.evaluation.ray_actors import evaluate_on_ray as evaluate_on_ray
from tl_rome.counterfact.evaluation.store import load_results as load_results
from tl_rome.counterfact.experiments.curve import Curve as Curve
from tl_rome.counterfact.experiments.mass import mass_edits as mass_edits
from tl_rome.counterfact.experiments.plot import plot_sequential as plot_sequential
from tl_rome.counterfact.experiments.plot import plot_sweep as plot_sweep
from tl_rome.counterfact.experiments.sequential import sequential_edits as sequential_edits
from tl_rome.counterfact.experiments.sequential_result import SequentialResult as SequentialResult
from tl_rome.counterfact.experiments.side_by_side import SideBySide as SideBySide
from tl_rome.counterfact.experiments.side_by_side import continue_side_by_side as continue_side_by_side
from tl_rome.counterfact.experiments.sweep import finetune_over_epsilon as finetune_over_epsilon
from tl_rome.counterfact.experiments.sweep import finetune_over_layers as finetune_over_layers
from tl_rome.counterfact.experiments.sweep import rome_over_layers as rome_over_layers
from tl_rome.counterfact.experiments.sweep import sweep_editors as sweep_editors
from tl_rome.counterfact.metrics.columns import COLUMNS as COLUMNS
from tl_rome.counterfact.metrics.columns import PAPER_COLUMNS as PAPER_COLUMNS
from tl_rome.counterfact.records import CounterFactRecord as CounterFactRecord
from tl_rome.counterfact.records import RequestedRewrite as RequestedRewrite
from tl_rome.counterfact.report.composition import tabulate_composition as tabulate_composition
from tl_rome.counterfact.report.page import write_report as write_report
from tl_rome.counterfact.report.parquet import to_dataset as to_dataset
from tl_rome.counterfact.report.parquet import write_parquet as write_parquet
from tl_rome.counterfact.report.plot import plot_summary as plot_summary
from tl_rome.counterfact.report.summary import Summary as Summary
from tl_rome.counterfact.report.summary import summarize as summarize
from tl_rome.counterfact.results import CaseResult as CaseResult
from tl_rome.counterfact.results import Divergence as Divergence
from tl_rome.counterfact.results import Generation as Generation
from tl_rome.counterfact.results import Measurement as Measurement
from tl_rome.counterfact.results import PromptScores as PromptScores
from tl_rome.editors.by_name import EDITOR_NAMES as EDITOR_NAMES
from tl_rome.editors.by_name import editors_by_name as editors_by_name
from tl_rome.editors.protocol import Editor as Editor
from tl_rome.fact_files import Relation as Relation
from tl_rome.fact_files import StatedFact as StatedFact
from tl_rome.fact_files import Target as Target
from tl_rome.fact_files import load_pararel as load_pararel

guard(__name__)
