"""Tools and tool calls in the notation of OpenAI and TRL, and in OpenAI's older notation as functions."""

from typing import Any

from alignkit.data.decoding import decode_text
from alignkit.data.nodes import Node, RowError

TOOLS = frozenset({"tools", "functions"})
"""Keys of a conversation's tools, current and deprecated."""
CALLS = frozenset({"tool_calls", "function_call"})
"""Keys of an assistant's calls, current and deprecated."""


def parse_tools(conversation: Node) -> list[dict[str, Any]] | None:
    """The tools of a conversation; None if it has none.

    `tools` is an array of objects, or that array as JSON text, which TRL allows. `functions` become tools.
    """
    tools = _array(conversation.at("tools"), "an array of tools")
    functions = _array(conversation.at("functions"), "an array of functions")
    if functions is None:
        return None if tools is None else [_wrapped(tool) for tool in tools.plain()]
    if tools is not None:
        raise conversation.at("functions").refuse("tools or functions, not both")
    for function in functions.entries("an array of functions"):
        _require_name(function)
    return [{"type": "function", "function": function} for function in functions.plain()]


def _wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as chat templates take it; ShareGPT and OpenAI's Responses API name the function at top level."""
    if "function" in tool or "name" not in tool:
        return tool
    kind = tool.get("type", "function")
    return {"type": kind, "function": {key: value for key, value in tool.items() if key != "type"}}


def parse_written_calls(node: Node) -> list[dict[str, Any]]:
    """The call or calls in a ShareGPT turn, which are JSON text."""
    expected = 'the JSON text of a call {"name": …, "arguments": …}'
    if not isinstance(node.value, str):
        raise node.refuse(expected)
    found = _decoded(node, expected)
    calls = found.entries(expected) if isinstance(found.value, list) else [found]
    return [{"type": "function", "function": _function(call)} for call in calls]


def _array(node: Node, expected: str) -> Node | None:
    if isinstance(node.value, str) and node.value:
        node = _decoded(node, expected)
    if not node.given or node.value in ([], ""):
        return None
    for entry in node.entries(expected):
        if not isinstance(entry.value, dict):
            raise entry.refuse("a tool, which is an object")
    return node


def parse_calls(message: Node) -> list[dict[str, Any]] | None:
    """The calls that an assistant's message makes; None if it makes none.

    A `function_call` becomes a tool call. Arguments, which OpenAI gives as the text of a JSON object, become the
    object: vLLM renders them that way, and chat templates would encode text a second time.
    """
    before = message.at("function_call")
    calls = message.at("tool_calls")
    if not calls.given or calls.value == []:
        return [{"type": "function", "function": _function(before)}] if before.given else None
    if before.given:
        raise before.refuse("tool_calls or a function_call, not both")
    return [_call(call) for call in calls.entries("an array of tool calls")]


def _call(node: Node) -> dict[str, Any]:
    if not isinstance(node.value, dict):
        raise node.refuse('a tool call {"type": "function", "function": …}')
    return {**node.plain(), "function": _function(node.at("function"))}


def _function(node: Node) -> dict[str, Any]:
    """The function's name and arguments; missing arguments become an empty object, as in vLLM."""
    _require_name(node)
    expected, arguments = "a JSON object, or the text of one", node.at("arguments")
    if not arguments.given or (isinstance(arguments.value, str) and not arguments.value.strip()):
        arguments = arguments.holding({})
    elif isinstance(arguments.value, str):
        arguments = _decoded(arguments, expected)
    if not isinstance(arguments.value, dict):
        raise arguments.refuse(expected)
    return {**node.plain(), "arguments": arguments.plain()}


def _decoded(node: Node, expected: str) -> Node:
    """The same place with the decoded value of its JSON text."""
    try:
        return node.holding(decode_text(node.value))
    except RowError as error:
        raise node.refuse(expected, error.found) from None


def _require_name(function: Node) -> None:
    if not isinstance(function.value, dict):
        raise function.refuse('{"name": …, "arguments": …}')
    function.at("name").text("the name of a function")
