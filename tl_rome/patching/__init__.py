"""Where a fact is kept: causal tracing by activation patching (section 2, appendix B)."""

from tl_rome.arguments import guard
from tl_rome.fact_files import load_facts as load_facts
from tl_rome.fact_files import load_pararel as load_pararel
from tl_rome.fact_files import load_sample_facts as load_sample_facts
from tl_rome.fact_files import save_facts as save_facts
from tl_rome.patching.attribution import Agreement as Agreement
from tl_rome.patching.attribution import attribution_trace as attribution_trace
from tl_rome.patching.attribution import measure_agreement as measure_agreement
from tl_rome.patching.averaging.average import AverageTrace as AverageTrace
from tl_rome.patching.averaging.average import average_traces as average_traces
from tl_rome.patching.averaging.known import KnownFact as KnownFact
from tl_rome.patching.averaging.known import collect_known_facts as collect_known_facts
from tl_rome.patching.averaging.layer import LayerSuggestion as LayerSuggestion
from tl_rome.patching.averaging.layer import find_layer as find_layer
from tl_rome.patching.averaging.layer import suggest_layer as suggest_layer
from tl_rome.patching.averaging.trace_facts import trace_facts as trace_facts
from tl_rome.patching.averaging.trace_store import load_traces as load_traces
from tl_rome.patching.config import TraceConfig as TraceConfig
from tl_rome.patching.corruption import AddedNoise as AddedNoise
from tl_rome.patching.corruption import Corruption as Corruption
from tl_rome.patching.corruption import GaussianNoise as GaussianNoise
from tl_rome.patching.corruption import HeavyTailedNoise as HeavyTailedNoise
from tl_rome.patching.corruption import ReleasedNoise as ReleasedNoise
from tl_rome.patching.corruption import ReplacedSubject as ReplacedSubject
from tl_rome.patching.corruption import UniformNoise as UniformNoise
from tl_rome.patching.corruption import example_subjects as example_subjects
from tl_rome.patching.corruption import noise_scale as noise_scale
from tl_rome.patching.corruption import replaced_subject as replaced_subject
from tl_rome.patching.metrics import LogitDifference as LogitDifference
from tl_rome.patching.metrics import Metric as Metric
from tl_rome.patching.metrics import TargetLogprob as TargetLogprob
from tl_rome.patching.metrics import TargetProbability as TargetProbability
from tl_rome.patching.patching_result import from_patching_result as from_patching_result
from tl_rome.patching.patching_result import to_patching_result as to_patching_result
from tl_rome.patching.plots.average import plot_average as plot_average
from tl_rome.patching.plots.average import plot_averages as plot_averages
from tl_rome.patching.plots.average import plot_roles as plot_roles
from tl_rome.patching.plots.frames import summary_frame as summary_frame
from tl_rome.patching.plots.frames import to_frame as to_frame
from tl_rome.patching.plots.frames import view_trace as view_trace
from tl_rome.patching.plots.trace import plot_trace as plot_trace
from tl_rome.patching.plots.trace import plot_traces as plot_traces
from tl_rome.patching.result import TraceResult as TraceResult
from tl_rome.patching.trace import causal_trace as causal_trace
from tl_rome.patching.trace import trace_together as trace_together
from tl_rome.patching.windows import layer_window as layer_window

guard(__name__)
