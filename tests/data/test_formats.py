"""The forms of preference rows: each parses to the same row, and what is wrong is named by JSON pointer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.formats import PreferenceRow, RowError, parse_preference

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@st.composite
def rows(draw: st.DrawFn) -> PreferenceRow:
    """A conversation with one answer on each side; system turn and earlier turns optional."""
    prompt = [message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        prompt += [message("user", draw(TEXT)), message("assistant", draw(TEXT))]
    prompt.append(message("user", draw(TEXT)))
    return PreferenceRow(prompt, [message("assistant", draw(TEXT))], [message("assistant", draw(TEXT))])


def openai(row: PreferenceRow) -> dict[str, Any]:
    return {
        "input": {"messages": row.prompt},
        "preferred_output": row.chosen,
        "non_preferred_output": row.rejected,
    }


def trl(row: PreferenceRow) -> dict[str, Any]:
    return {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}


def sharegpt(row: PreferenceRow) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}

    def turn(one: dict[str, str]) -> dict[str, str]:
        return {"from": names[one["role"]], "value": one["content"]}

    return {
        "conversations": [turn(one) for one in row.prompt],
        "chosen": turn(row.chosen[0]),
        "rejected": turn(row.rejected[0]),
    }


@given(rows(), st.sampled_from([openai, trl, sharegpt]))
def test_every_form_gives_the_same_row(row: PreferenceRow, form: Any) -> None:
    assert parse_preference(form(row)) == row


@given(rows())
def test_trls_implicit_prompt(row: PreferenceRow) -> None:
    parsed = parse_preference({"chosen": row.prompt + row.chosen, "rejected": row.prompt + row.rejected})
    assert parsed.prompt + parsed.chosen == row.prompt + row.chosen
    assert parsed.prompt + parsed.rejected == row.prompt + row.rejected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    "input",
    "messages",
    "prompt",
    "chosen",
    "rejected",
    "conversations",
    "preferred_output",
    "role",
    "from",
]


@given(JSON | st.dictionaries(st.sampled_from([*KEYS, "non_preferred_output", "system", "tools"]), JSON))
def test_any_other_value_gives_a_row_error_or_a_row(value: Any) -> None:
    try:
        assert isinstance(parse_preference(value), PreferenceRow)
    except RowError as error:
        assert len(str(error)) < 600  # noqa: PT017 - either outcome is right


GOOD = openai(
    PreferenceRow([message("user", "Hi")], [message("assistant", "a")], [message("assistant", "b")])
)


@pytest.mark.parametrize(
    ("change", "pointer", "expected", "found"),
    [
        ({"input": {"messages": []}}, "/input/messages", "an array of messages", "an array without entries"),
        ({"input": {}}, "/input", "an object with messages", "an object without entries"),
        ({"input": {"messages": ["Hi"]}}, "/input/messages/0", '"role"', "the text 'Hi'"),
        (
            {"input": {"messages": [message("robot", "Hi")]}},
            "/input/messages/0/role",
            "one of system",
            "'robot'",
        ),
        (
            {"input": {"messages": [{"role": "user", "content": 3}]}},
            "/input/messages/0/content",
            "text",
            "number 3",
        ),
        ({"input": {"messages": [message("user", "  ")]}}, "/input/messages/0/content", "text", "'  '"),
        ({"preferred_output": []}, "/preferred_output", "an array of messages", "an array without entries"),
        ({"preferred_output": [message("user", "x")]}, "/preferred_output/0/role", "assistant", "'user'"),
        ({"non_preferred_output": None}, "/non_preferred_output", "an array of messages", "null"),
        ({"input": {"messages": [message("assistant", "Hi")]}}, "/prompt", "the user's turn", "assistant"),
        (
            {"input": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}},
            "/input/messages/0/content/0",
            '"type": "text"',
            "an object",
        ),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], pointer: str, expected: str, found: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference(GOOD | change)
    assert caught.value.pointer == pointer
    assert expected in caught.value.expected
    assert found in caught.value.found


def test_a_missing_key_is_named_by_the_nearest_form() -> None:
    row = {key: value for key, value in GOOD.items() if key != "non_preferred_output"}
    with pytest.raises(RowError, match="OpenAI's form") as caught:
        parse_preference(row)
    assert caught.value.pointer == "/non_preferred_output"


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    row = parse_preference(GOOD | {"input": {"messages": [{"role": "user", "content": parts}]}})
    assert row.prompt == [message("user", "Hello")]


def test_plain_text_rows_are_one_turn_each() -> None:
    row = parse_preference({"prompt": "Q", "chosen": "yes", "rejected": "no"})
    assert row == PreferenceRow(
        [message("user", "Q")], [message("assistant", "yes")], [message("assistant", "no")]
    )
