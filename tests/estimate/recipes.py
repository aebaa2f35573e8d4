"""Recipes for estimates: nothing of them has to exist but the shape of the model."""

from typing import Any

from alignkit.estimate import Lengths
from alignkit.estimate.lengths import assumed
from alignkit.recipe import Recipe

LENGTHS: Lengths = assumed(512, 1000)


def recipe(method: dict[str, Any], path: str = "qwen2.5-0.5b", **parts: Any) -> Recipe:
    """A recipe of bfloat16 models, LoRA unless `lora` says otherwise; parts are merged into their sections."""
    values: dict[str, Any] = {
        "model": {"path": path, "dtype": "bfloat16"},
        "data": {"train": "rows.jsonl", "max_length": 512},
        "method": method,
        "training": {"batch_size": 16, "micro_batch_size": 2},
        "output_dir": "runs/x",
    }
    for name, part in parts.items():
        values[name] = values[name] | part if isinstance(part, dict) and name in values else part
    return Recipe.parse(values)
