"""Labelled files for tests, in TRL's form."""

import json
from pathlib import Path
from typing import Any


def row(index: int) -> dict[str, Any]:
    """One answer; of three, two are desirable."""
    return {
        "prompt": f"What is {index} plus {index}?",
        "completion": f"It is {2 * index + (index % 3 == 0)}.",
        "label": index % 3 != 0,
    }


def write_labelled(path: Path, count: int = 12, start: int = 0) -> Path:
    """Write `count` labelled answers to `path`."""
    path.write_text(
        "".join(json.dumps(row(index)) + "\n" for index in range(start, start + count)), encoding="utf-8"
    )
    return path
