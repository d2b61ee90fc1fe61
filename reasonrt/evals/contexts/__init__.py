"""Questions about contexts of any length, with their answers, scores and a baseline."""

from reasonrt.evals.contexts.baseline import keyword_baseline
from reasonrt.evals.contexts.files import read_problems, write_problems
from reasonrt.evals.contexts.generation import SEMANTIC_TASKS, generate, task_names
from reasonrt.evals.contexts.problem import ContextProblem
from reasonrt.evals.contexts.scoring import SCORES, count_score, f1_score, score

__all__ = [
    "SCORES",
    "SEMANTIC_TASKS",
    "ContextProblem",
    "count_score",
    "f1_score",
    "generate",
    "keyword_baseline",
    "read_problems",
    "score",
    "task_names",
    "write_problems",
]
