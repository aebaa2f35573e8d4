"""The parser of tool calls that follows from a chat template."""

import json
from pathlib import Path

import pytest

from alignkit.models.chat_templates import read_template
from alignkit_server.engines.tool_calls import parser_of, template_in


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("qwen2_5", "hermes"),
        ("qwen3", "hermes"),
        ("qwen3_5_think", "qwen3_coder"),
        ("glm4moe", "glm45"),
        ("llama3_1", "llama3_json"),
        ("llama3_2", "llama3_json"),
        ("deepseekv3", "deepseek_v3"),
        ("gptoss", "openai"),
        ("lfm2_2_5", "lfm2"),
        ("gemma4", "gemma4"),
        ("gemma", None),
        ("llama3", None),
        ("phi3", None),
    ],
)
def test_the_parser_follows_from_trls_template(template: str, parser: str | None) -> None:
    assert parser_of(read_template(template)) == parser


def test_a_template_is_found_in_its_file_or_in_the_tokenizers_configuration(tmp_path: Path) -> None:
    assert template_in(tmp_path) is None
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert template_in(tmp_path) == "b"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert template_in(tmp_path) == "c"
