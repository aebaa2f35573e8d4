"""What a model says, measured: a preference metric is not a quality metric."""

from alignkit.evaluate.answers import AnswerQuality, Limits, distinct, measure, reasons, repetition

__all__ = ["AnswerQuality", "Limits", "distinct", "measure", "reasons", "repetition"]
