"""From prediction logs to scores: metrics, slices, paired differences, decisions; no training.

`evaluate(read_rows(path))` gives the evaluation value that report.json holds; docs/evaluation.md.
"""

from stream.evaluation.alignment import align
from stream.evaluation.options import EvaluationOptions
from stream.evaluation.rows import PredictionRows, read_rows
from stream.evaluation.text import markdown
from stream.evaluation.value import evaluate

__all__ = ["EvaluationOptions", "PredictionRows", "align", "evaluate", "markdown", "read_rows"]
