"""Changing a fact: rank-one edits of an MLP's W_out (section 4, appendices B.1 and F)."""

from tl_rome.editors.config import DRAFT as DRAFT
from tl_rome.editors.config import NEURIPS as NEURIPS
from tl_rome.editors.config import P_ROME as P_ROME
from tl_rome.editors.config import PRESETS as PRESETS
from tl_rome.editors.config import R_ROME as R_ROME
from tl_rome.editors.config import RELEASED as RELEASED
from tl_rome.editors.config import RomeConfig as RomeConfig
from tl_rome.editors.contexts import sample_contexts as sample_contexts
from tl_rome.editors.convergence import Convergence as Convergence
from tl_rome.editors.convergence import convergence as convergence
from tl_rome.editors.covariance import KeyCovariance as KeyCovariance
from tl_rome.editors.edit import Edit as Edit
from tl_rome.editors.estimation import estimate_covariances as estimate_covariances
from tl_rome.editors.export import export_model as export_model
from tl_rome.editors.layers import default_layer as default_layer
from tl_rome.editors.published import import_npz as import_npz
from tl_rome.editors.receipt import Receipt as Receipt
from tl_rome.editors.rome import Rome as Rome
from tl_rome.editors.rome import rome as rome
from tl_rome.editors.sequence import EditSequence as EditSequence
from tl_rome.editors.sequence import compose as compose
from tl_rome.editors.update import DenseUpdate as DenseUpdate
from tl_rome.editors.update import RankOneUpdate as RankOneUpdate
