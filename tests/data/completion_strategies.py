"""Random completion rows, and the forms they can be written in, for property tests."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from alignkit.data.rows import CompletionRow
from tests.data.strategies import TEXT, message

Form = Callable[[CompletionRow], dict[str, Any]]
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


@st.composite
def completion_rows(draw: st.DrawFn) -> CompletionRow:
    """A conversation whose assistant turns all carry loss; system turn and earlier rounds are optional."""
    messages = [message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [message("user", draw(TEXT)), message("assistant", draw(TEXT))]
    return CompletionRow(messages, answers(messages))


def answers(messages: list[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(index for index, one in enumerate(messages) if one["role"] == "assistant")


def openai(row: CompletionRow) -> dict[str, Any]:
    """Chat rows; a turn without loss has weight 0."""
    weighed = [
        one | ({"weight": int(index in row.loss_positions)} if one["role"] == "assistant" else {})
        for index, one in enumerate(row.messages)
    ]
    return {"messages": weighed} | ({"tools": row.tools} if row.tools else {})


def openai_plain(row: CompletionRow) -> dict[str, Any]:
    """Chat rows without weights, which TRL writes too."""
    return {"messages": row.messages}


def sharegpt(row: CompletionRow) -> dict[str, Any]:
    return {
        "conversations": [{"from": SPEAKERS[one["role"]], "value": one["content"]} for one in row.messages]
    }


def sharegpt_system(row: CompletionRow) -> dict[str, Any]:
    written = sharegpt(row)
    if row.messages[0]["role"] == "system":
        written |= {"system": row.messages[0]["content"], "conversations": written["conversations"][1:]}
    return written


def alpaca(row: CompletionRow) -> dict[str, Any]:
    system = row.messages[0]["content"] if row.messages[0]["role"] == "system" else ""
    turns = [one["content"] for one in row.messages if one["role"] != "system"]
    return {
        "instruction": turns[-2],
        "input": "",
        "output": turns[-1],
        "system": system,
        "history": [turns[start : start + 2] for start in range(0, len(turns) - 2, 2)],
    }


def trl(row: CompletionRow) -> dict[str, Any]:
    """Rows of a form in which only the last turn carries loss."""
    return {"prompt": row.messages[:-1], "completion": row.messages[-1:]}


FORMS: list[Form] = [openai, openai_plain, sharegpt, sharegpt_system, alpaca]
"""Completion forms in which every assistant turn carries loss."""
