from .editors import Edit as Edit
from .editors import KeyCovariance as KeyCovariance
from .editors import Rome as Rome
from .editors import rome as rome
from .errors import TLRomeError as TLRomeError
from .facts import EditRequest as EditRequest
from .facts import Fact as Fact
from .generation import continue_texts as continue_texts
from .models import load_model as load_model
from .patching import GaussianNoise as GaussianNoise
from .patching import TraceConfig as TraceConfig
from .patching import TraceResult as TraceResult
from .patching import attribution_trace as attribution_trace
from .patching import average_traces as average_traces
from .patching import causal_trace as causal_trace
from .patching import collect_known_facts as collect_known_facts
from .patching import plot_averages as plot_averages
from .patching import plot_trace as plot_trace
from .patching import replaced_subject as replaced_subject
from .patching import suggest_layer as suggest_layer
from .patching import to_frame as to_frame
from .patching import trace_facts as trace_facts
from .patching import view_trace as view_trace
from .scoring import score_targets as score_targets

__version__: str
