"""Rows reach TRL's dataset unchanged, and a bad file does not get that far."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.data.dataset import load_rows, to_trl
from alignkit.data.nodes import RowError
from alignkit.data.rows import PreferenceRow, parse_preference
from alignkit.errors import DataError
from tests.data.strategies import EXACT_JSON, rows, trl
from tests.preference import write_pairs


def test_rows_reach_trl_as_conversations(tmp_path: Path) -> None:
    loaded = load_rows(write_pairs(tmp_path / "pairs.jsonl", 3), "f_dpo")
    dataset = to_trl(loaded)
    assert dataset.column_names == ["prompt", "chosen", "rejected"]
    assert dataset[1] == {
        "prompt": loaded[1].prompt,
        "chosen": loaded[1].chosen,
        "rejected": loaded[1].rejected,
    }


def test_a_bad_file_raises_its_report(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": ""}')
    with pytest.raises(
        DataError, match=r"bad\.jsonl: 1 of 1 rows cannot be used\nline 1, /rejected: expected"
    ):
        load_rows(tmp_path / "bad.jsonl", "f_dpo")
    with pytest.raises(DataError, match=r"none\.jsonl: the file cannot be read: No such file"):
        load_rows(tmp_path / "none.jsonl", "f_dpo")


@st.composite
def with_calls(draw: st.DrawFn) -> PreferenceRow | None:
    """A row with any arguments and any tools that the parser lets through."""
    row = draw(rows())
    call = {"type": "function", "function": {"name": "f", "arguments": draw(EXACT_JSON)}}
    written: dict[str, Any] = trl(row) | {
        "tools": draw(st.none() | st.just([{"function": draw(EXACT_JSON)}]))
    }
    written["chosen"] = [row.chosen[0] | draw(st.sampled_from([{}, {"name": "n"}, {"tool_calls": [call]}]))]
    try:
        return parse_preference(written)
    except RowError:
        return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(with_calls(), min_size=1, max_size=4))
def test_messages_and_tools_of_any_shape_reach_trl_unchanged(drawn: list[PreferenceRow | None]) -> None:
    kept = [row for row in drawn if row is not None]
    if not kept:
        return
    for row, record in zip(kept, to_trl(kept), strict=True):
        assert (record["prompt"], record["chosen"], record["rejected"], record.get("tools")) == (
            row.prompt,
            row.chosen,
            row.rejected,
            row.tools,
        )
