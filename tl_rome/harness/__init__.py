"""Tasks of lm-evaluation-harness on edited models, with the scores that the harness gives the same weights elsewhere.

Needs the extra `harness`. Source: EleutherAI, lm-evaluation-harness 0.4.13, whose class for transformers, `HFLM`, reads
the texts; only the model is another.
"""

from tl_rome.arguments import guard
from tl_rome.harness.evaluation import evaluate_tasks as evaluate_tasks
from tl_rome.harness.evaluation import harness_model as harness_model

guard(__name__)
