"""The forms a preference row may have, recognised by their keys and turned into one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""{"role": …, "content": …}, and what else OpenAI allows on a message."""

ROLES = ("system", "developer", "user", "assistant", "tool")


class RowError(Exception):
    """A row is refused: where (JSON pointer), what was expected, what was found."""

    def __init__(
        self, pointer: str, expected: str, found: object = None, *, shown: str | None = None
    ) -> None:
        self.pointer = pointer
        self.expected = expected
        self.found = shown if shown is not None else describe(found)
        super().__init__(f"{pointer or '/'}: expected {expected}, found {self.found}")


def describe(value: object) -> str:
    """A short name for what was found, never the whole of it."""
    names: dict[type, str] = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}
    if type(value) in names:
        return f"{names[type(value)]}{' without entries' if value in ({}, []) else ''}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}{'…' if len(value) > 40 else ''}"
    return f"the number {str(value)[:20]}"


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
    parse: Callable[[Mapping[str, Any]], PreferenceRow]

    @property
    def keys(self) -> frozenset[str]:
        return self.required | self.optional


def recognise(row: object) -> Form:
    """The form of a row; raises RowError naming the forms there are."""
    if not isinstance(row, dict):
        raise RowError("", "an object", row)
    for form in PREFERENCE_FORMS:
        if form.required <= row.keys():
            return form
    raise _nearest(row)


def _nearest(row: Mapping[str, Any]) -> RowError:
    """The error that helps most: the key missing from the form that the row comes closest to."""
    best = max(PREFERENCE_FORMS, key=lambda form: len(form.required & row.keys()))
    if best.required & row.keys():
        missing = sorted(best.required - row.keys())[0]
        return RowError(f"/{missing}", f"the key of a row in {best.name}'s form", shown="no such key")
    forms = "; ".join(f"{form.name}: {', '.join(sorted(form.required))}" for form in PREFERENCE_FORMS)
    keys = ", ".join(sorted(map(str, row))[:6]) or "none"
    return RowError("", f"the keys of a preference row ({forms})", shown=f"the keys {keys}"[:120])


def parse_preference(row: object) -> PreferenceRow:
    """A row in OpenAI's, TRL's or ShareGPT's form; raises RowError."""
    parsed = recognise(row).parse(row)  # type: ignore[arg-type]
    if parsed.prompt[-1]["role"] not in {"user", "tool"}:
        raise RowError(
            "/prompt",
            "a conversation that ends with the user's turn",
            shown=f"a last turn of {parsed.prompt[-1]['role']}",
        )
    return parsed


def _openai(row: Mapping[str, Any]) -> PreferenceRow:
    body = row["input"]
    if not isinstance(body, dict) or "messages" not in body:
        raise RowError("/input", "an object with messages", body)
    prompt = _messages(body["messages"], "/input/messages")
    tools = body.get("tools") or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowError("/input/tools", "an array of objects", tools)
    chosen = _answer(row["preferred_output"], "/preferred_output")
    return PreferenceRow(prompt, chosen, _answer(row["non_preferred_output"], "/non_preferred_output"), tools)


def _trl(row: Mapping[str, Any]) -> PreferenceRow:
    tools = row.get("tools") or None
    prompt = row["prompt"]
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": _text(prompt, "/prompt")}]
    else:
        messages = _messages(prompt, "/prompt")
    return PreferenceRow(
        messages, _completion(row["chosen"], "/chosen"), _completion(row["rejected"], "/rejected"), tools
    )


def _trl_implicit(row: Mapping[str, Any]) -> PreferenceRow:
    """Whole conversations on both sides; the prompt is what they share."""
    chosen, rejected = _messages(row["chosen"], "/chosen"), _messages(row["rejected"], "/rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise RowError(
            "/rejected/0", "the same first message as in chosen (there is no prompt key)", shown="another one"
        )
    return PreferenceRow(
        chosen[:shared], _answer(chosen[shared:], "/chosen"), _answer(rejected[shared:], "/rejected")
    )


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def _sharegpt(row: Mapping[str, Any]) -> PreferenceRow:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise RowError("/conversations", "an array of turns", turns)
    prompt = [_sharegpt_turn(turn, f"/conversations/{index}") for index, turn in enumerate(turns)]
    system = row.get("system")
    if system:
        prompt.insert(0, {"role": "system", "content": _text(system, "/system")})
    sides = [[_sharegpt_turn(row[side], f"/{side}")] for side in ("chosen", "rejected")]
    return PreferenceRow(prompt, _answer(sides[0], "/chosen"), _answer(sides[1], "/rejected"))


def _sharegpt_turn(turn: object, pointer: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(pointer, 'an object {"from": …, "value": …}', turn)
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise RowError(f"{pointer}/from", f"one of {', '.join(_SHAREGPT_ROLES)}", speaker)
    return {"role": _SHAREGPT_ROLES[speaker], "content": _text(turn.get("value"), f"{pointer}/value")}


def _messages(value: object, pointer: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise RowError(pointer, "an array of messages", value)
    return [_message(message, f"{pointer}/{index}") for index, message in enumerate(value)]


def _message(value: object, pointer: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(pointer, 'an object {"role": …, "content": …}', value)
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"{pointer}/role", f"one of {', '.join(ROLES)}", role)
    if role == "assistant" and value.get("tool_calls") and value.get("content") is None:
        return {"role": role, "content": "", "tool_calls": value["tool_calls"]}
    message = {"role": role, "content": _text(value.get("content"), f"{pointer}/content")}
    return message | {key: value[key] for key in ("name", "tool_calls", "tool_call_id") if value.get(key)}


def _text(value: object, pointer: str) -> str:
    """A string, or OpenAI's list of text parts, joined."""
    if isinstance(value, list) and value:
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in value
        ]
        if all(isinstance(part, str) for part in parts):
            value = "".join(part for part in parts if part)
        else:
            raise RowError(
                f"{pointer}/{parts.index(None)}",
                'a part {"type": "text", "text": …}',
                value[parts.index(None)],
            )
    if not isinstance(value, str) or not value.strip():
        raise RowError(pointer, "text", value)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(pointer, "valid Unicode", shown="half of a surrogate pair")
    return value


def _completion(value: object, pointer: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": _text(value, pointer)}]
    return _answer(value, pointer)


def _answer(value: object, pointer: str) -> list[Message]:
    """At least one message, the last one the assistant's."""
    messages = _messages(value, pointer)
    if messages[0]["role"] != "assistant":
        raise RowError(f"{pointer}/0/role", "assistant", messages[0]["role"])
    if messages[-1]["role"] != "assistant":
        raise RowError(f"{pointer}/{len(messages) - 1}/role", "assistant", messages[-1]["role"])
    return messages


PREFERENCE_FORMS: tuple[Form, ...] = (
    Form("OpenAI", frozenset({"input", "preferred_output", "non_preferred_output"}), frozenset(), _openai),
    Form("ShareGPT", frozenset({"conversations", "chosen", "rejected"}), frozenset({"system"}), _sharegpt),
    Form("TRL", frozenset({"prompt", "chosen", "rejected"}), frozenset({"tools"}), _trl),
    Form("TRL", frozenset({"chosen", "rejected"}), frozenset(), _trl_implicit),
)
