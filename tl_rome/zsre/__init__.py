"""zsRE: questions with true answers, scored token by token (Levy et al. 2017; the layout and split of MEND)."""

from tl_rome.arguments import guard
from tl_rome.zsre.evaluate import evaluate_zsre as evaluate_zsre
from tl_rome.zsre.records import ZsreRecord as ZsreRecord
from tl_rome.zsre.records import is_zsre as is_zsre
from tl_rome.zsre.records import load_zsre as load_zsre
from tl_rome.zsre.results import ZSRE_COLUMNS as ZSRE_COLUMNS
from tl_rome.zsre.results import ZsreResults as ZsreResults
from tl_rome.zsre.scores import ZsreScores as ZsreScores
from tl_rome.zsre.scores import score_zsre as score_zsre

guard(__name__)
