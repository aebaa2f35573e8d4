"""Rows reach TRL's dataset unchanged, and a bad file does not get that far."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from alignkit.data import check_file
from alignkit.data.dataset import load_rows, run_datasets, split, to_trl
from alignkit.data.nodes import RowError
from alignkit.data.rows import PreferenceRow, parse_preference
from alignkit.errors import DataError
from alignkit.sections import DataSection
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


def pairs(count: int) -> str:
    return "".join(json.dumps(trl_text(n)) + "\n" for n in range(count))


def trl_text(number: int) -> dict[str, str]:
    return {"prompt": f"q{number}", "chosen": "yes", "rejected": "no"}


def options(train: Path, **values: Any) -> DataSection:
    return DataSection.model_validate({"train": str(train), "max_length": 64} | values)


def test_a_share_of_the_prompts_is_held_out_the_same_whatever_the_order(
    tmp_path: Path, tokenizer: Any
) -> None:
    rows = [parse_preference(trl_text(n // 2)) for n in range(40)]
    kept, held_out = split(rows, 0.1)
    assert sorted(kept + held_out) == list(range(40))
    assert len(held_out) == 4
    apart = {str(rows[at].prompt) for at in kept} & {str(rows[at].prompt) for at in held_out}
    assert not apart
    backwards = split(rows[::-1], 0.1)[1]
    assert {str(rows[::-1][at].prompt) for at in backwards} == {str(rows[at].prompt) for at in held_out}
    (tmp_path / "rows.jsonl").write_text(pairs(20))
    train, evaluation = run_datasets(options(tmp_path / "rows.jsonl", validation=0.05), "f_dpo", tokenizer)
    assert (len(train), len(evaluation)) == (19, 1)
    with pytest.raises(DataError, match="at least two different prompts"):
        split(rows[:2], 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2])
def test_a_share_lies_between_0_and_1(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValidationError, match="a share must lie between 0 and 1"):
        options(tmp_path, validation=share)


@pytest.mark.parametrize(
    ("skip_bad", "ok"), [(0, False), (1, False), (2, True), (0.1, True), (True, True), (0.05, False)]
)
def test_bad_rows_are_left_out_up_to_a_limit_and_listed(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, skip_bad: Any, ok: bool
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(pairs(18) + '{"prompt": ""}\n{"prompt": "a", "chosen": "", "rejected": "b"}\n')
    if not ok:
        with pytest.raises(DataError, match="2 of 20 rows cannot be used"):
            run_datasets(options(file, skip_bad=skip_bad), "f_dpo", tokenizer)
        return
    with caplog.at_level(logging.WARNING):
        train, _ = run_datasets(options(file, skip_bad=skip_bad), "f_dpo", tokenizer)
    assert len(train) == 18
    assert "rows.jsonl: 2 of 20 rows are invalid and skipped\nline 19" in caplog.text
    assert "line 20, /chosen: expected non-blank text" in caplog.text


def test_rows_that_the_template_refuses_are_bad_rows(tmp_path: Path, tokenizer: Any) -> None:
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = (
        "{% if 'q3' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    (tmp_path / "rows.jsonl").write_text(pairs(20))
    with pytest.raises(DataError, match=r"1 of 20 rows cannot be used\nline 4: the model's chat template"):
        run_datasets(options(tmp_path / "rows.jsonl"), "f_dpo", picky)
    assert len(run_datasets(options(tmp_path / "rows.jsonl", skip_bad=1), "f_dpo", picky)[0]) == 19


def test_a_file_for_another_method_is_named_with_the_methods_that_take_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "input": "", "output": "b"}\n' * 680)
    report = check_file(tmp_path / "rows.jsonl", "f_dpo")
    assert report.bad_rows == 680
    assert report.findings()[0].startswith("680 rows, the first at line 1, /")
    assert (
        "the rows look like Alpaca's form of completion rows, which the methods supervised"
        in report.notices[0]
    )
    assert len(report.summary()) < 500


def test_no_other_method_is_named_where_the_form_is_right_and_a_value_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "", "rejected": "b"}\n')
    assert check_file(tmp_path / "rows.jsonl", "f_dpo").notices == ()


def test_more_bad_rows_than_may_be_left_out_are_said(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(pairs(8) + '{"prompt": "a"}\n' * 2)
    report = check_file(tmp_path / "rows.jsonl", "f_dpo", skip_bad=0.1)
    assert (report.ok, report.notices) == (False, ("at most 1 invalid rows may be skipped, found 2",))


def test_rows_and_prompts_that_the_held_out_file_has_too_are_said(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train.jsonl").write_text(pairs(6))
    other = json.dumps(trl_text(5) | {"chosen": "maybe"})
    (tmp_path / "held.jsonl").write_text(f"{pairs(2)}{other}\n")
    held_out = options(tmp_path / "train.jsonl", validation=str(tmp_path / "held.jsonl"))
    with caplog.at_level(logging.WARNING):
        run_datasets(held_out, "f_dpo", tokenizer)
    assert "train.jsonl: the validation file also has 2 of its different rows" in caplog.text
    assert "train.jsonl: the validation file also has 3 of its different prompts" in caplog.text
