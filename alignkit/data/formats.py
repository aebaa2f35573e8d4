"""The forms a preference row may have, recognised by their keys and turned into one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    parse_answer,
    parse_content,
    parse_prompt,
    parse_tools,
)
from alignkit.data.nodes import Node, RowError, printable

__all__ = ["PREFERENCE_FORMS", "Form", "Message", "PreferenceRow", "RowError", "parse_preference"]


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One conversation with a preferred and a dispreferred continuation."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """A recognisable form of row: the keys it must have, those it may have, and its parser."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    parse: Callable[[Node], PreferenceRow]


def parse_preference(row: object, unused: set[str] | None = None) -> PreferenceRow:
    """A row in OpenAI's, TRL's or ShareGPT's form; raises RowError.

    The names of keys that play no part are added to `unused`.
    """
    node = Node(row, unused=set() if unused is None else unused)
    form = _recognise(node)
    return form.parse(node.as_object("an object", form.required | form.optional))


def _recognise(node: Node) -> Form:
    if not isinstance(node.value, dict):
        raise node.refuse("an object")
    for form in PREFERENCE_FORMS:
        if form.required <= node.value.keys():
            return form
    raise _nearest(node)


def _nearest(node: Node) -> RowError:
    """The error that helps most: the first key that the row lacks of the form it comes closest to."""
    keys = node.value.keys()
    best = min(PREFERENCE_FORMS, key=lambda form: (len(form.required - keys), -len(form.required & keys)))
    if best.required & keys:
        missing = min(best.required - keys)
        return node.at(missing).refuse(f"the key of a row in {best.name}'s form")
    forms = "; ".join(f"{form.name}: {', '.join(sorted(form.required))}" for form in PREFERENCE_FORMS)
    found = ", ".join(printable(key, 20) for key in sorted(keys)[:6])
    return node.refuse(f"the keys of a preference row ({forms})", f"the keys {found}" if found else None)


def _openai(row: Node) -> PreferenceRow:
    body = row.at("input").as_object('an object {"messages": …}', frozenset({"messages", "tools"}))
    return PreferenceRow(
        prompt=parse_prompt(_turns(body.at("messages")), MESSAGES),
        chosen=parse_answer(_turns(row.at("preferred_output")), MESSAGES),
        rejected=parse_answer(_turns(row.at("non_preferred_output")), MESSAGES),
        tools=parse_tools(body.at("tools")),
    )


def _trl(row: Node) -> PreferenceRow:
    prompt = row.at("prompt")
    return PreferenceRow(
        prompt=[{"role": "user", "content": parse_content(prompt)}]
        if isinstance(prompt.value, str)
        else parse_prompt(_turns(prompt), MESSAGES),
        chosen=_trl_answer(row.at("chosen")),
        rejected=_trl_answer(row.at("rejected")),
        tools=parse_tools(row.at("tools")),
    )


def _trl_answer(node: Node) -> list[Message]:
    if isinstance(node.value, str):
        return [{"role": "assistant", "content": parse_content(node)}]
    turns = _turns(node)
    first = turns[0].value
    if isinstance(first, dict) and first.get("role") in ("system", "developer", "user"):
        hint = "an answer only; for whole conversations on both sides, leave the key 'prompt' out"
        raise turns[0].at("role").refuse(hint)
    return parse_answer(turns, MESSAGES)


def _trl_implicit(row: Node) -> PreferenceRow:
    """Whole conversations on both sides; the prompt is what they share."""
    chosen, rejected = (_conversation(row.at(side)) for side in ("chosen", "rejected"))
    shared = _shared(list(map(MESSAGES.parse, chosen)), list(map(MESSAGES.parse, rejected)))
    if shared == 0:
        raise RowError(
            "/rejected/0", "the same first message as in chosen (there is no prompt key)", "another one"
        )
    return PreferenceRow(
        prompt=parse_prompt(chosen[:shared], MESSAGES),
        chosen=parse_answer(chosen[shared:], MESSAGES),
        rejected=parse_answer(rejected[shared:], MESSAGES),
        tools=parse_tools(row.at("tools")),
    )


def _conversation(node: Node) -> list[Node]:
    return node.entries("a whole conversation (an array of messages), since there is no prompt key")


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with; the last of either is an answer even if it is the same."""
    most = min(len(chosen), len(rejected)) - 1
    return next((index for index in range(most) if chosen[index] != rejected[index]), most)


def _sharegpt(row: Node) -> PreferenceRow:
    turns = row.at("conversations").entries("an array of turns")
    prompt = parse_prompt(turns, TURNS)
    system = row.at("system")
    if system.given and system.value != "":
        if prompt[0]["role"] == "system":
            raise turns[0].at("from").refuse("no system turn beside the key 'system'")
        prompt.insert(0, {"role": "system", "content": system.text()})
    return PreferenceRow(
        prompt=prompt,
        chosen=parse_answer([row.at("chosen")], TURNS),
        rejected=parse_answer([row.at("rejected")], TURNS),
    )


def _turns(node: Node) -> list[Node]:
    return node.entries("an array of messages")


PREFERENCE_FORMS: tuple[Form, ...] = (
    Form("OpenAI", frozenset({"input", "preferred_output", "non_preferred_output"}), frozenset(), _openai),
    Form("ShareGPT", frozenset({"conversations", "chosen", "rejected"}), frozenset({"system"}), _sharegpt),
    Form("TRL", frozenset({"prompt", "chosen", "rejected"}), frozenset({"tools"}), _trl),
    Form("TRL (without prompt)", frozenset({"chosen", "rejected"}), frozenset({"tools"}), _trl_implicit),
)
"""In the order they are tried: one whose keys contain another's comes first."""
