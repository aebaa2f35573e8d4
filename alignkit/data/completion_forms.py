"""The forms a completion row may have. Every turn of the assistant carries loss unless the form says otherwise."""

from collections.abc import Sequence
from typing import Any

from alignkit.data.completions import CompletionRow
from alignkit.data.formats import PREFERENCE_FORMS, PreferenceRow, trl_answer, trl_prompt
from alignkit.data.forms import Form, parse_row
from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    parse_content,
    parse_message,
    with_system,
)
from alignkit.data.nodes import Node
from alignkit.data.tools import TOOLS, parse_tools

WEIGHT = frozenset({"weight"})
REJECTED = frozenset({"rejected", "non_preferred_output"})
"""The dispreferred answer's key in the forms of preference rows."""


def parse_completion(row: object, unused: set[str] | None = None) -> CompletionRow:
    """A row in OpenAI's, TRL's, Alpaca's or ShareGPT's form, or a preference row; raises RowError.

    Of a preference row the preferred answer is learned, and the other's key counts as unused. The names of keys
    that play no part are added to `unused`.
    """
    return parse_row(row, unused, COMPLETION_FORMS, "completion")


def _openai(row: Node) -> CompletionRow:
    """OpenAI's chat rows: an assistant's turn of weight 0 carries no loss."""
    turns = row.at("messages").entries("an array of messages")
    messages = [parse_message(turn, WEIGHT if _is_assistant(turn) else frozenset()) for turn in turns]
    _require_answer(turns, messages, MESSAGES.role_key)
    weighted = tuple(turn for turn in _answers(messages) if _weight(turns[turn].at("weight")))
    return CompletionRow(messages, weighted, parse_tools(row))


def _is_assistant(turn: Node) -> bool:
    return isinstance(turn.value, dict) and turn.at("role").value == "assistant"


def _weight(node: Node) -> bool:
    if not node.given:
        return True
    if isinstance(node.value, bool) or node.value not in (0, 1):
        raise node.refuse("0 or 1, whether the turn carries loss")
    return bool(node.value)


def _trl(row: Node) -> CompletionRow:
    """TRL's prompt and completion; turns of the assistant inside the prompt are context."""
    prompt, answer = trl_prompt(row.at("prompt")), trl_answer(row.at("completion"))
    return _answered(prompt, answer, parse_tools(row))


def _alpaca(row: Node) -> CompletionRow:
    """Alpaca's: the input on a line of its own after the instruction, as LLaMA-Factory joins them."""
    asked = row.at("instruction").text()
    if row.at("input").given and row.at("input").value != "":
        asked = f"{asked}\n{row.at('input').text()}"
    messages: list[Message] = [*_history(row.at("history")), {"role": "user", "content": asked}]
    messages.append({"role": "assistant", "content": parse_content(row.at("output"))})
    system = row.at("system")
    if system.given and system.value != "":
        messages.insert(0, {"role": "system", "content": system.text()})
    return CompletionRow(messages, _answers(messages))


def _history(node: Node) -> list[Message]:
    """Earlier rounds, [[question, answer], …]."""
    if not node.given or node.value == []:
        return []
    messages: list[Message] = []
    for round_ in node.entries("an array of rounds"):
        texts = round_.entries("a round [question, answer]")
        if len(texts) != 2:
            raise round_.refuse("a round [question, answer]", f"an array of {len(texts)}")
        question, answer = texts
        messages += [
            {"role": "user", "content": question.text()},
            {"role": "assistant", "content": answer.text()},
        ]
    return messages


def _sharegpt(row: Node) -> CompletionRow:
    turns = row.at("conversations").entries("an array of turns")
    messages = [TURNS.parse(turn) for turn in turns]
    _require_answer(turns, messages, TURNS.role_key)
    messages = with_system(row.at("system"), turns, messages)
    return CompletionRow(messages, _answers(messages), parse_tools(row))


def _require_answer(turns: Sequence[Node], messages: list[Message], role_key: str) -> None:
    """A conversation ends with an answer, and does not start with one: a model answers something."""
    if messages[-1]["role"] != "assistant":
        raise (
            turns[-1]
            .at(role_key)
            .refuse("the conversation to end with the assistant's turn, which is learned")
        )
    if messages[0]["role"] == "assistant":
        raise turns[0].at(role_key).refuse("a turn that the assistant answers to begin the conversation")


def _answers(messages: list[Message]) -> tuple[int, ...]:
    return tuple(index for index, message in enumerate(messages) if message["role"] == "assistant")


def _answered(
    prompt: list[Message], answer: list[Message], tools: list[dict[str, Any]] | None
) -> CompletionRow:
    learned = tuple(len(prompt) + index for index in _answers(answer))
    return CompletionRow(prompt + answer, learned, tools)


def _preferred(form: Form[PreferenceRow]) -> Form[CompletionRow]:
    """A form of preference rows, of which the preferred answer is learned."""

    def parse(row: Node) -> CompletionRow:
        pair = form.parse(row)
        row.unused.update(form.required & REJECTED)
        return _answered(pair.prompt, pair.chosen, pair.tools)

    return Form(f"{form.name} preference", form.required, form.optional, parse)


COMPLETION_FORMS: tuple[Form[CompletionRow], ...] = (
    Form("OpenAI", frozenset({"messages"}), TOOLS, _openai),
    Form("TRL", frozenset({"prompt", "completion"}), TOOLS, _trl),
    Form("Alpaca", frozenset({"instruction", "output"}), frozenset({"input", "system", "history"}), _alpaca),
    *map(_preferred, PREFERENCE_FORMS),
    Form("ShareGPT", frozenset({"conversations"}), frozenset({"system"}) | TOOLS, _sharegpt),
)
"""In the order they are tried: one whose keys contain another's comes first."""
