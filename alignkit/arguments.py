"""Argument checks that losses and kernels share; each error says what was expected and what was found."""

import math
from collections.abc import Collection

from torch import Tensor


def at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError unless `value` is finite and >= `least`."""
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} must be a finite number >= {least:g}, found {value}")


def positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and > 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, found {value}")


def one_of(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")


def shaped(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has exactly this shape."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, found {list(value.shape)}")


def paired_logits(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are [rows, vocabulary] of equal shape."""
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if logits.dim() != 2:
            raise ValueError(f"{name} must be [rows, vocabulary], found shape {list(logits.shape)}")
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student and teacher must share one vocabulary, found {student.shape[1]} and {teacher.shape[1]} columns"
        )
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student and teacher must have the same rows, found {student.shape[0]} and {teacher.shape[0]}"
        )
