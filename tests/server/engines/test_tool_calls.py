"""The parser of tool calls that follows from a chat template."""

import importlib.util
import json
from pathlib import Path

import pytest

from alignkit.models.chat_templates import read_template
from alignkit_server.engines.tool_calls import MARKS, parser_of, template_in


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
        ("muse_glimmer", "muse_glimmer"),
        ("gemma", None),
        ("llama3", None),
        ("phi3", None),
    ],
)
def test_the_parser_follows_from_trls_template(template: str, parser: str | None) -> None:
    assert parser_of(read_template(template)) == parser


@pytest.mark.parametrize(
    ("written", "parser"),
    [
        ("<\uff5ctool\u2581call\u2581begin\uff5c>name<\uff5ctool\u2581sep\uff5c>{}", "deepseek_v31"),
        ("<|tool_calls_section_begin|><|tool_call_begin|>", "kimi_k2"),
        ("<seed:tool_call>\\n<function=name>", "seed_oss"),
        ("<minimax:tool_call>", "minimax_m2"),
        ("<start_function_call>call:name{}<end_function_call>", "functiongemma"),
    ],
)
def test_the_parser_follows_from_the_marks_of_other_models(written: str, parser: str) -> None:
    assert parser_of("{% for call in message.tool_calls %}" + written + "{% endfor %}") == parser


def test_every_parser_is_one_of_vllms() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    known = (Path(spec.origin).parent / "tool_parsers" / "__init__.py").read_text()
    assert [parser for _, parser in MARKS if f'"{parser}": (' not in known] == []


def test_a_template_is_found_in_its_file_or_in_the_tokenizers_configuration(tmp_path: Path) -> None:
    assert template_in(tmp_path) is None
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert template_in(tmp_path) == "b"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert template_in(tmp_path) == "c"
