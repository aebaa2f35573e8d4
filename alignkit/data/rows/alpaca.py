"""Alpaca's notation of a prompt, shared by completions, pairs and labelled rows."""

from alignkit.data.messages import Message, system_text
from alignkit.data.nodes import Node

PROMPT_KEYS = frozenset({"input", "system", "history"})
"""Keys that may accompany `instruction`."""


def alpaca_prompt(row: Node, key: str = "instruction") -> list[Message]:
    """System text, earlier rounds and the instruction; its input follows on a new line, as in LLaMA-Factory."""
    asked = row.at(key).text()
    if row.at("input").given and row.at("input").value != "":
        asked = f"{asked}\n{row.at('input').text()}"
    return [*system_text(row.at("system")), *_history(row.at("history")), {"role": "user", "content": asked}]


def _history(node: Node) -> list[Message]:
    """Earlier rounds, given as [[question, answer], …]."""
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
