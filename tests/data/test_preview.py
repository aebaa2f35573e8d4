"""Previews, and what a terminal shows of them, of statistics and of reports."""

from typing import Any

import pytest
from rich.console import Console, RenderableType

from alignkit.data.rendering import render_preview, render_report, render_statistics, visible
from alignkit.data.report import Segment, describe_rows, preview_row
from alignkit.data.rows import COMPLETION, PREFERENCE, PreferenceRow, parse_completion, parse_preference
from alignkit.data.validation import FileReport, LineIssue
from tests.data.strategies import message
from tests.preference import pair_ids, row

ROW = parse_preference(row(1))


def shown(renderable: RenderableType) -> str:
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def marks(segments: list[Segment]) -> list[tuple[bool, bool]]:
    return [(segment.carries_loss, segment.cut) for segment in segments]


CONTEXT, LOSS, CUT = (False, False), (True, False), (False, True)


def test_loss_and_cut_fall_where_training_puts_them(tokenizer: Any) -> None:
    pair = pair_ids(ROW, tokenizer)
    prompt, whole = len(pair.prompt), len(pair.prompt) + len(pair.chosen)
    expected = {
        whole: [CONTEXT, LOSS],
        whole - 1: [CONTEXT, LOSS, CUT],
        prompt + 1: [CONTEXT, LOSS, CUT],
        prompt: [CONTEXT, CUT],
        prompt - 2: [CONTEXT, CUT],
    }
    for limit, segments in expected.items():
        preview = preview_row(ROW, tokenizer, max_length=limit)
        assert marks(preview.sequences["chosen"]) == segments
        assert preview.dropped == (limit <= prompt)
        assert sum(segment.tokens for segment in preview.sequences["chosen"]) == whole
        assert sum(segment.tokens for segment in preview.sequences["chosen"] if not segment.cut) == limit


@pytest.mark.parametrize("limit", range(1, 60))
def test_the_segments_are_the_text(tokenizer: Any, limit: int) -> None:
    spaced = PreferenceRow(
        [message("user", "naïve ?")], [message("assistant", "  two  spaces , naïve")], ROW.rejected
    )
    preview = preview_row(spaced, tokenizer, max_length=limit)
    pair = pair_ids(spaced, tokenizer)
    assert "".join(segment.text for segment in preview.sequences["chosen"]) == tokenizer.decode(
        pair.prompt + pair.chosen
    )


def test_a_preview_on_a_terminal(tokenizer: Any) -> None:
    wild = PreferenceRow([message("user", "[bold]a\x1b[2Jb")], ROW.chosen, ROW.rejected)
    text = shown(render_preview("row 1", preview_row(wild, tokenizer, max_length=400)))
    assert "row 1 · chosen" in text
    assert "row 1 · rejected" in text
    assert "[bold]a\\x1b[2Jb" in text
    assert "context, " in text
    assert "dropped" not in text
    assert "row 1 is dropped" in shown(render_preview("row 1", preview_row(wild, tokenizer, max_length=16)))


def test_statistics_on_a_terminal(tokenizer: Any) -> None:
    text = shown(
        render_statistics(describe_rows([ROW] * 4, tokenizer, PREFERENCE, max_length=40, held_out=[ROW]))
    )
    assert "prompt and longer answer" in text
    assert "cut at 40 tokens: 4 rows (100.0%)" in text
    assert "duplicates of an earlier row: 3 rows" in text
    assert "rows that are also in the validation file: 4 rows" in text


def test_a_report_on_a_terminal() -> None:
    issue = LineIssue(3, "/chosen", "text", "the text '[red]'")
    text = shown(render_report("a\x1bb.jsonl", FileReport(9, 2, (issue,), ("something",))))
    assert text.splitlines() == [
        "a\\x1bb.jsonl: 2 of 9 rows cannot be used",
        "line 3, /chosen: expected text, found the text '[red]'",
        "and 1 more",
        "note: something",
    ]
    assert shown(render_report("a", FileReport(1, 0, ()))) == "a: 1 row, all valid\n"


def test_visible_keeps_what_can_be_read() -> None:
    assert visible("naïve ☕\n\tx") == "naïve ☕\n\tx"
    assert visible("\x1b]0;x\x07\r\u202e\x9b") == "\\x1b]0;x\\x07\\r\\u202e\\x9b"


def test_turns_with_and_without_loss_alternate(tokenizer: Any) -> None:
    turns = [message(role, text) for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    row = parse_completion({"messages": turns})
    (sequence,) = row.render(tokenizer)
    preview = preview_row(row, tokenizer, max_length=512)
    (segments,) = preview.sequences.values()
    assert marks(segments) == [CONTEXT, LOSS, CONTEXT, LOSS, CONTEXT]
    assert [segment.text for segment in segments if segment.carries_loss] == ["b<|im_end|>", "d<|im_end|>"]
    assert "".join(segment.text for segment in segments) == tokenizer.decode(sequence.ids)
    short = preview_row(row, tokenizer, max_length=sequence.prompt_length)
    assert marks(short.sequences["answer"])[:2] == [CONTEXT, CUT]
    assert short.dropped
    text = shown(render_statistics(describe_rows([row], tokenizer, COMPLETION, max_length=512)))
    assert "no turn that carries loss: 0 rows" in text
    assert "prompt and answer" in text
