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
from .patching import TraceResult as TraceResult
from .patching import causal_trace as causal_trace
from .patching import plot_trace as plot_trace
from .scoring import score_targets as score_targets

__version__: str
