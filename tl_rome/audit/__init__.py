"""Looking for edits: how two versions of a model differ, and whether a model has been edited."""

from tl_rome.arguments import guard
from tl_rome.audit.answers import Answers as Answers
from tl_rome.audit.answers import Said as Said
from tl_rome.audit.change import WeightChange as WeightChange
from tl_rome.audit.diff import ModelDiff as ModelDiff
from tl_rome.audit.diff import diff_models as diff_models
from tl_rome.audit.finding import Direction as Direction
from tl_rome.audit.finding import Finding as Finding
from tl_rome.audit.repair import Repair as Repair
from tl_rome.audit.review import Audit as Audit
from tl_rome.audit.review import audit_model as audit_model

guard(__name__)
