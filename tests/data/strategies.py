"""Random rows, the forms they can be written in, and arbitrary JSON, for property tests."""

from typing import Any

from hypothesis import strategies as st

from alignkit.data.rows import PreferenceRow

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
ANY_TEXT = st.text(max_size=8)
INTEGERS = st.integers(-(2**70), 2**70)


def json_values(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """Any value that Python's json can read or write, with these numbers."""
    return st.recursive(
        st.none() | st.booleans() | numbers | ANY_TEXT,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
        max_leaves=12,
    )


JSON = json_values(INTEGERS | st.floats())
EXACT_JSON = json_values(INTEGERS | st.integers(-1000, 1000).map(lambda number: number / 8))
"""With numbers of so few digits that every JSON library writes them alike."""


def message(role: str, content: str) -> dict[str, Any]:
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
        "input": {"messages": row.prompt} | ({"tools": row.tools} if row.tools else {}),
        "preferred_output": row.chosen,
        "non_preferred_output": row.rejected,
    }


def openai_parts(row: PreferenceRow) -> dict[str, Any]:
    """OpenAI's form with every content as a list of parts."""

    def parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        halves = [(one, len(one["content"]) // 2) for one in messages]
        return [
            one | {"content": [{"type": "text", "text": text} for text in (whole[:at], whole[at:])]}
            for one, at in halves
            for whole in [one["content"]]
        ]

    return {
        "input": {"messages": parts(row.prompt)},
        "preferred_output": parts(row.chosen),
        "non_preferred_output": parts(row.rejected),
    }


def trl(row: PreferenceRow) -> dict[str, Any]:
    return {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}


def trl_implicit(row: PreferenceRow) -> dict[str, Any]:
    return {"chosen": row.prompt + row.chosen, "rejected": row.prompt + row.rejected}


def sharegpt(row: PreferenceRow) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}

    def turn(one: dict[str, str]) -> dict[str, str]:
        return {"from": names[one["role"]], "value": one["content"]}

    return {
        "conversations": [turn(one) for one in row.prompt],
        "chosen": turn(row.chosen[0]),
        "rejected": turn(row.rejected[0]),
    }


def sharegpt_system(row: PreferenceRow) -> dict[str, Any]:
    """ShareGPT's form with the system text as a key of its own."""
    written = sharegpt(row)
    if row.prompt[0]["role"] == "system":
        written |= {"system": row.prompt[0]["content"], "conversations": written["conversations"][1:]}
    return written


FORMS = [openai, openai_parts, trl, trl_implicit, sharegpt, sharegpt_system]
