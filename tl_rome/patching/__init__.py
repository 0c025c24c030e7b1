"""Where a fact is kept: causal tracing by activation patching (section 3, appendix A)."""

from tl_rome.patching.attribution import Agreement as Agreement
from tl_rome.patching.attribution import agreement as agreement
from tl_rome.patching.attribution import attribution_trace as attribution_trace
from tl_rome.patching.average import AverageTrace as AverageTrace
from tl_rome.patching.average import average_traces as average_traces
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
from tl_rome.patching.plot import plot_trace as plot_trace
from tl_rome.patching.result import TraceResult as TraceResult
from tl_rome.patching.trace import causal_trace as causal_trace
from tl_rome.patching.trace import trace_together as trace_together
from tl_rome.patching.windows import layer_window as layer_window
