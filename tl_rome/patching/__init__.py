"""Where a fact is kept: causal tracing by activation patching (section 3, appendix A)."""

from tl_rome.patching.corruption import AddedNoise as AddedNoise
from tl_rome.patching.corruption import Corruption as Corruption
from tl_rome.patching.corruption import GaussianNoise as GaussianNoise
from tl_rome.patching.corruption import example_subjects as example_subjects
from tl_rome.patching.corruption import noise_scale as noise_scale
from tl_rome.patching.plot import plot_trace as plot_trace
from tl_rome.patching.result import TraceResult as TraceResult
from tl_rome.patching.trace import causal_trace as causal_trace
from tl_rome.patching.windows import layer_window as layer_window
