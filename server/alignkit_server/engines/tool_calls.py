"""The vLLM parser that reads a model's tool calls, from the marks that its chat template writes around them."""

import json
from pathlib import Path

from alignkit.models.chat_templates import FILE

NO_PARSER = "none"
"""The setting that turns tool calls off."""

MARKS = (
    ("<atem:function_calls>", "muse_glimmer"),
    ("<seed:tool_call>", "seed_oss"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<longcat_tool_call>", "longcat"),
    ("<start_function_call>", "functiongemma"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<|tools_prefix|>", "apertus"),
    ("<function_calls>", "olmo3"),
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("tool\u2581call\u2581begin", "deepseek_v31"),
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
    template = template or ""
    parser = next((parser for mark, parser in MARKS if mark in template), None)
    # DeepSeek V3 and R1 write arguments as a block of code, V3.1 as they are
    return "deepseek_v3" if parser == "deepseek_v31" and "```json" in template else parser


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
