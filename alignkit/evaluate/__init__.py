"""Measures of a model's sampled answers, because preference metrics do not measure quality."""

from alignkit.evaluate.answers import AnswerQuality, Limits, distinct, measure, reasons, repetition

__all__ = ["AnswerQuality", "Limits", "distinct", "measure", "reasons", "repetition"]
