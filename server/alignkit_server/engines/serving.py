"""How a job's result is served: as an adapter of its base model's engine, or merged, by an engine of its own."""

import json
from pathlib import Path
from typing import Literal

Serving = Literal["adapter", "merged", "merged_fp8"]
AS_ADAPTER: Serving = "adapter"
QUANTIZATIONS = {"merged_fp8": "fp8_per_channel"}
"""Serving -> vLLM's --quantization: here a scale for each output of a matrix, and for each token's activations."""
MARK = "serving.json"
"""File beside merged weights that names their quantisation."""


def mark(folder: Path, serving: str) -> None:
    """Note in a folder of merged weights how its engine quantises them."""
    (folder / MARK).write_text(json.dumps({"quantization": QUANTIZATIONS.get(serving)}), encoding="utf-8")


def quantization_in(folder: Path) -> str | None:
    """vLLM's --quantization for the weights in `folder`; None for weights as they are."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))["quantization"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
