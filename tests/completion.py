"""Completion files for tests, in OpenAI's form."""

import json
from pathlib import Path
from typing import Any


def row(index: int) -> dict[str, Any]:
    """A conversation of two answers, the first without loss."""
    return {
        "messages": [
            {"role": "user", "content": f"What is {index} plus {index}?"},
            {"role": "assistant", "content": f"It is {2 * index}.", "weight": 0},
            {"role": "user", "content": "And plus one?"},
            {"role": "assistant", "content": f"It is {2 * index + 1}." + " Yes." * (index % 4)},
        ]
    }


def write_completions(path: Path, count: int = 12, start: int = 0) -> Path:
    """Write `count` rows to `path`."""
    path.write_text(
        "".join(json.dumps(row(index)) + "\n" for index in range(start, start + count)), encoding="utf-8"
    )
    return path
