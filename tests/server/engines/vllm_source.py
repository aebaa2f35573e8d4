"""Reads the installed vLLM, which no fast test imports."""

import importlib.util
from pathlib import Path

import pytest


def vllm_source(place: str) -> str:
    """The text of a file of the installed vLLM, which is not imported; skips the test where there is none."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return (Path(spec.origin).parent / place).read_text(encoding="utf-8")
