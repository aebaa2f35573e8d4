"""The vLLM parser that reads a model's tool calls, from the marks that its chat template writes around them."""

import json
from pathlib import Path

from alignkit.models.chat_templates import FILE

NO_PARSER = "none"
"""The setting that turns tool calls off."""

MARKS = (
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("tool\u2581call\u2581begin", "deepseek_v3"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|tool_call>", "gemma4"),
    ("<|channel|>commentary", "openai"),
    ("[TOOL_CALLS]", "mistral"),
    ("functools[", "phi4_mini_json"),
    ("Environment: ipython", "llama3_json"),
    ("<tool_call>", "hermes"),
)
"""(text in a template, vLLM's parser), the most telling first: several forms stand inside `<tool_call>`."""


def parser_of(template: str | None) -> str | None:
    """The name of vLLM's parser for the calls that a chat template writes; None if it is not known."""
    return next((parser for mark, parser in MARKS if template and mark in template), None)


def template_in(folder: Path) -> str | None:
    """The chat template of the model in `folder`; None if it has none."""
    try:
        return (folder / FILE).read_text(encoding="utf-8")
    except OSError:
        pass
    try:
        given = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(
            "chat_template"
        )
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(given, list):  # several by name
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("tool_use") or named.get("default")
    return given if isinstance(given, str) else None
