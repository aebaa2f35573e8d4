"""The Modelfile: the chat template as Ollama's, proved by rendering, and the tokens that end an answer."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from alignkit.export import ExportOptions, Source, export, ollama, source_at
from alignkit.export.ollama import go_template, modelfile
from alignkit.export.turns import Turns, turns_of
from alignkit.models.chat_templates import read_template
from tests.export.modelfile import parse
from tests.export.models import GEMMA_TEMPLATE, build
from tests.tiny import CHAT_TEMPLATE, build_tiny_tokenizer

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    + CHAT_TEMPLATE
)
CHATML = (
    "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ end }}'
    '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ end }}'
    '{{ if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}'
    "{{ if not $last }}<|im_end|>\n{{ end }}{{ end }}"
    '{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n{{ end }}{{ end }}'
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def found(tokenizer: Any, template: str) -> Turns | None:
    tokenizer.chat_template = template
    return turns_of(tokenizer)


def test_chatml_is_found_and_written_in_go(tokenizer: Any) -> None:
    turns = found(tokenizer, CHAT_TEMPLATE)
    assert turns == Turns(
        "",
        "",
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n",
        ("<|im_start|>system\n", "<|im_end|>\n"),
    )
    assert go_template(turns) == CHATML


def test_a_default_system_message_is_written_where_there_is_none(tokenizer: Any) -> None:
    turns = found(tokenizer, DEFAULT_SYSTEM)
    assert turns is not None
    assert turns.opening + turns.default == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert "{{ if not .System }}" in str(go_template(turns))


def test_a_system_message_inside_the_first_user_turn_is_found(tokenizer: Any) -> None:
    turns = found(tokenizer, GEMMA_TEMPLATE)
    assert turns is not None
    assert (turns.opening, turns.inside_user, turns.system) == ("<|im_start|>", "\n\n", None)
    go = str(go_template(turns, start="<|im_start|>"))
    assert go.startswith("{{ range")  # Ollama writes the start token itself
    assert (
        "<start_of_turn>user\n{{ if and $.System (lt $i 2) }}{{ $.System }}\n\n{{ end }}{{ .Content }}" in go
    )


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma"])
def test_trls_templates_are_expressed(tokenizer: Any, name: str) -> None:
    turns = found(tokenizer, read_template(name))
    assert turns is not None
    assert go_template(turns) is not None


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_does_more_is_not_guessed(tokenizer: Any, template: str) -> None:
    assert found(tokenizer, template) is None


@pytest.mark.parametrize("name", ["qwen3", "phi3_5", "gptoss"])
def test_a_template_that_changes_earlier_answers_is_not_written(tokenizer: Any, name: str) -> None:
    assert found(tokenizer, read_template(name)) is None


def test_a_date_that_stays_is_told(tmp_path: Path) -> None:
    model, said = build(tmp_path / "tiny", "llama"), []
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name in ("llama3_2", "llama3"):
        tokenizer.chat_template = read_template(name)
        tokenizer.save_pretrained(model)
        options = ExportOptions("f16", check=False, report=said.append)
        export(source_at(model), "ollama", tmp_path / name, options)
    assert [line for line in said if "writes the date" in line] == [ollama.TODAY]


def test_without_a_template_the_modelfile_says_so(tokenizer: Any, tmp_path: Path) -> None:
    text = modelfile("x.gguf", Source("x", tmp_path, str(tmp_path)), tokenizer, None)
    assert text.splitlines()[0] == "FROM ./x.gguf"
    assert text.splitlines()[1].startswith("# The chat template puts more than fixed texts around each turn")
    assert text.splitlines()[2:] == ['PARAMETER stop "<|im_end|>"']


@pytest.mark.parametrize(
    "end",
    ["<|im_end|>", "</s>", "a \\ b", 'say "no"', '"x', "line\nbreak", " spaces ", "# no comment", "\u2581é"],
)
def test_a_modelfile_reads_back_as_it_was_meant(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    turns = found(tokenizer, CHAT_TEMPLATE)
    monkeypatch.setattr(ollama, "stops", lambda *_: [end, "<|other|>"])
    text = modelfile("x y.gguf", Source("x", tmp_path, str(tmp_path)), tokenizer, turns)
    assert parse(text) == [
        ("from", "./x y.gguf"),
        ("template", CHATML),
        ("stop", end),
        ("stop", "<|other|>"),
    ]


def test_braces_of_a_template_are_not_read_as_gos() -> None:
    turns = Turns("{{", "", ("u", "v"), ("a", "b"), "a")
    assert str(go_template(turns)).startswith('{{ "{{" }}{{ range')
    assert go_template(Turns('"""', "", ("u", "v"), ("a", "b"), "a")) is None


def test_an_export_is_a_gguf_and_a_modelfile(tmp_path: Path) -> None:
    model = build(tmp_path / "tiny", "gemma3_text")
    options = ExportOptions("f16", check=False, report=lambda _: None)
    target = export(source_at(model), "ollama", tmp_path / "out", options)
    assert sorted(path.name for path in target.iterdir()) == ["Modelfile", "README.md", "tiny-F16.gguf"]
    text = (target / "Modelfile").read_text()
    assert [name for name, _ in parse(text)] == ["from", "template", "stop"]
    assert text.startswith('FROM ./tiny-F16.gguf\nTEMPLATE """<bos>{{ range')
    assert text.endswith('PARAMETER stop "<eos>"\n')
    assert AutoTokenizer.from_pretrained(model).chat_template == GEMMA_TEMPLATE
