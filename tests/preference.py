"""Preference files for tests, in OpenAI's form."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.data.rows import PreferenceRow


def row(index: int) -> dict[str, Any]:
    """One pair; the preferred answer is short, the other is long."""
    return {
        "input": {"messages": [{"role": "user", "content": f"What is {index} plus {index}?"}]},
        "preferred_output": [{"role": "assistant", "content": f"It is {2 * index}."}],
        "non_preferred_output": [
            {
                "role": "assistant",
                "content": f"Well, {index} plus {index} could be many things, such as {index + 1}.",
            }
        ],
    }


def write_pairs(path: Path, count: int = 12, start: int = 0) -> Path:
    """Write `count` pairs to `path`."""
    path.write_text(
        "".join(json.dumps(row(index)) + "\n" for index in range(start, start + count)), encoding="utf-8"
    )
    return path


class PairIds(NamedTuple):
    """Token ids of a pair: what both answers share, and either answer."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pair_ids(row: PreferenceRow, tokenizer: Any) -> PairIds:
    """The ids of a pair as they are trained."""
    chosen, rejected = row.render(tokenizer)
    start = chosen.prompt_length
    assert rejected.ids[:start] == chosen.ids[:start]
    return PairIds(chosen.ids[:start], chosen.ids[start:], rejected.ids[start:])
