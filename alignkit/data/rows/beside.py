"""Answers given in keys of their own next to a prompt: text, one message, messages, or a whole conversation."""

from collections.abc import Sequence

from alignkit.data.messages import (
    MESSAGES,
    SYSTEM_ROLES,
    Message,
    answer_turns,
    parse_answer,
    parse_content,
    parse_prompt,
    role_named,
    role_of,
    split_last_answer,
    turns_of,
)
from alignkit.data.nodes import Node


def prompt_beside(node: Node) -> list[Message]:
    """The messages of TRL's prompt: text (a user turn), one message, or messages."""
    if isinstance(node.value, str):
        return [{"role": "user", "content": parse_content(node)}]
    return parse_prompt([node] if isinstance(node.value, dict) else turns_of(node), MESSAGES)


def answers_beside(
    prompt: list[Message], nodes: Sequence[Node], expected: str = "an array of messages"
) -> tuple[list[Message], list[list[Message]]]:
    """The prompt and the answers to it.

    If the answers are whole conversations, the prompt is their common beginning, and must contain the given prompt.
    Raises RowError if a conversation does not contain the given prompt, or two have different prompts.
    """
    turns = [answer_turns(node, expected) for node in nodes]
    whole = [_is_whole(answer) for answer in turns]
    answers = [
        _split(prompt, node, answer) if is_whole else (prompt, parse_answer(answer, MESSAGES))
        for node, answer, is_whole in zip(nodes, turns, whole, strict=True)
    ]
    prompts = [begin for (begin, _), is_whole in zip(answers, whole, strict=True) if is_whole]
    for node, (begin, _), is_whole in zip(nodes, answers, whole, strict=True):
        if is_whole and begin != prompts[0]:
            raise node.refuse(
                "a conversation with the same beginning as the other answers", "another beginning"
            )
    return (prompts[0] if prompts else prompt), [answer for _, answer in answers]


def _is_whole(turns: Sequence[Node]) -> bool:
    first = turns[0].value
    return isinstance(first, dict) and role_named(first.get("role")) in (*SYSTEM_ROLES, "user")


def _split(prompt: list[Message], node: Node, turns: Sequence[Node]) -> tuple[list[Message], list[Message]]:
    begin, answer = split_last_answer(turns, node)
    messages = parse_prompt(begin, MESSAGES)
    count = len(prompt)
    if prompt not in (messages[:count], messages[-count:]) and prompt[-1] not in messages:
        raise role_of(turns[0]).refuse(
            "only an answer, or a conversation that begins with the prompt; for whole conversations without a "
            "separate prompt, remove the key 'prompt'"
        )
    return messages, parse_answer(answer, MESSAGES)
