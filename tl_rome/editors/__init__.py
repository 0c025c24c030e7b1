"""Changing a fact: rank-one edits of an MLP's W_out (section 3.1, appendices A and E)."""

from tl_rome.arguments import guard
from tl_rome.editors.covariance.convergence import Convergence as Convergence
from tl_rome.editors.covariance.convergence import measure_convergence as measure_convergence
from tl_rome.editors.covariance.estimation import covariance_from_samples as covariance_from_samples
from tl_rome.editors.covariance.estimation import covariances_from_samples as covariances_from_samples
from tl_rome.editors.covariance.estimation import estimate_covariance as estimate_covariance
from tl_rome.editors.covariance.estimation import estimate_covariances as estimate_covariances
from tl_rome.editors.covariance.key_covariance import KeyCovariance as KeyCovariance
from tl_rome.editors.covariance.npz import import_npz as import_npz
from tl_rome.editors.edits.edit import Edit as Edit
from tl_rome.editors.edits.receipt import Receipt as Receipt
from tl_rome.editors.edits.sequence import EditSequence as EditSequence
from tl_rome.editors.edits.sequence import compose as compose
from tl_rome.editors.edits.update import DenseUpdate as DenseUpdate
from tl_rome.editors.edits.update import LowRankUpdate as LowRankUpdate
from tl_rome.editors.edits.virtual import VirtualEdits as VirtualEdits
from tl_rome.editors.edits.virtual import continue_edited as continue_edited
from tl_rome.editors.edits.virtual import edited_rows as edited_rows
from tl_rome.editors.edits.virtual import score_edited as score_edited
from tl_rome.editors.export.hugging_face import export_model as export_model
from tl_rome.editors.finetune import FT as FT
from tl_rome.editors.finetune import FT_L as FT_L
from tl_rome.editors.finetune import FineTune as FineTune
from tl_rome.editors.finetune import FineTuneConfig as FineTuneConfig
from tl_rome.editors.knowledge_neurons.attribution import attribute_neurons as attribute_neurons
from tl_rome.editors.knowledge_neurons.editor import KnowledgeNeurons as KnowledgeNeurons
from tl_rome.editors.knowledge_neurons.plot import plot_neurons as plot_neurons
from tl_rome.editors.knowledge_neurons.presets import KN as KN
from tl_rome.editors.knowledge_neurons.presets import KN_CORRECTED as KN_CORRECTED
from tl_rome.editors.knowledge_neurons.presets import KnowledgeNeuronsConfig as KnowledgeNeuronsConfig
from tl_rome.editors.knowledge_neurons.scores import Neuron as Neuron
from tl_rome.editors.knowledge_neurons.scores import NeuronScores as NeuronScores
from tl_rome.editors.knowledge_neurons.scores import shared_neurons as shared_neurons
from tl_rome.editors.layers import default_layer as default_layer
from tl_rome.editors.rank_one.contexts import sample_contexts as sample_contexts
from tl_rome.editors.rank_one.editor import Rome as Rome
from tl_rome.editors.rank_one.editor import rome as rome
from tl_rome.editors.rank_one.presets import DRAFT as DRAFT
from tl_rome.editors.rank_one.presets import NEURIPS as NEURIPS
from tl_rome.editors.rank_one.presets import P_ROME as P_ROME
from tl_rome.editors.rank_one.presets import PRESETS as PRESETS
from tl_rome.editors.rank_one.presets import R_ROME as R_ROME
from tl_rome.editors.rank_one.presets import RELEASED as RELEASED
from tl_rome.editors.rank_one.presets import RomeConfig as RomeConfig
from tl_rome.editors.rank_one.shared_values import SharedValues as SharedValues
from tl_rome.editors.trained.examples import TrainingExample as TrainingExample
from tl_rome.editors.trained.log import TrainingLog as TrainingLog
from tl_rome.editors.trained.log import Validation as Validation
from tl_rome.editors.trained.mend.config import MEND as MEND
from tl_rome.editors.trained.mend.config import MEND_CF as MEND_CF
from tl_rome.editors.trained.mend.config import MEND_RELEASED as MEND_RELEASED
from tl_rome.editors.trained.mend.config import MendConfig as MendConfig
from tl_rome.editors.trained.mend.editor import Mend as Mend
from tl_rome.editors.trained.mend.editor import train_mend as train_mend

guard(__name__)
