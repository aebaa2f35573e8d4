"""A GGUF file and a Modelfile for Ollama: the chat template in its language, and the tokens that end an answer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignkit.export.card import CARD, card_of
from alignkit.export.gguf import write_gguf
from alignkit.export.options import ExportOptions
from alignkit.export.source import Source
from alignkit.export.turns import Turns, turns_of
from alignkit.models.loading import adds_start

MODELFILE = "Modelfile"
UNKNOWN = (
    "The chat template puts more than fixed texts around each turn, so it is not written as Ollama's TEMPLATE; "
    "Ollama uses the one inside the GGUF if it knows it, and raw prompts otherwise"
)

DATED = "strftime_now"
"""The function with which a chat template writes the day's date."""
TODAY = "The chat template writes the date, which Ollama's TEMPLATE keeps as it is today"


def write(source: Source, folder: Path, options: ExportOptions) -> None:
    """Write the GGUF file, the Modelfile and the card."""
    file = write_gguf(source, folder, options)
    tokenizer = source.tokenizer()
    turns = turns_of(tokenizer) if tokenizer.chat_template else None
    if turns is None:
        options.report(UNKNOWN)
    elif DATED in tokenizer.chat_template:
        options.report(TODAY)
    (folder / MODELFILE).write_text(modelfile(file.name, source, tokenizer, turns), encoding="utf-8")
    note = f"`{file.name}` and a Modelfile: `ollama create NAME -f {MODELFILE}` in this folder."
    card = card_of(source, library="gguf", relation="quantized", note=note)
    (folder / CARD).write_text(card, encoding="utf-8")


def modelfile(file: str, source: Source, tokenizer: Any, turns: Turns | None) -> str:
    """The text of the Modelfile; `turns` is None for a chat template that Ollama's language cannot express."""
    lines = [f"FROM ./{file}"]
    template = None if turns is None else go_template(turns, start=_start_to_leave_out(tokenizer))
    lines.append(f"# {UNKNOWN}." if template is None else f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {quoted(text)}" for text in stops(source, tokenizer)]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A text between quotes, which a Modelfile reads up to the last one of them, without escapes."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def stops(source: Source, tokenizer: Any) -> Iterable[str]:
    """The texts of the tokens that end an answer, each once."""
    ids = source.ends() or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
    return dict.fromkeys(str(tokenizer.convert_ids_to_tokens(end)) for end in ids)


def _start_to_leave_out(tokenizer: Any) -> str:
    """The start token if Ollama puts it before each prompt itself, as the GGUF tells it; else empty."""
    return str(tokenizer.bos_token) if adds_start(tokenizer) else ""


def go_template(turns: Turns, *, start: str = "") -> str | None:
    """The turns in Go's template language, without the token `start` at the beginning.

    None if a text has the three quotes that end a template in a Modelfile.
    """
    opening = turns.opening.removeprefix(start)
    user = _text(turns.user[0]) + "{{ .Content }}" + _text(turns.user[1])
    if turns.inside_user is not None:
        first = "{{ if and $.System (lt $i 2) }}{{ $.System }}" + _text(turns.inside_user) + "{{ end }}"
        user = _text(turns.user[0]) + first + "{{ .Content }}" + _text(turns.user[1])
    answer = "{{ .Content }}{{ if not $last }}" + _text(turns.assistant[1]) + "{{ end }}"
    parts = [
        _text(opening),
        _without_system(turns),
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
        _if_system(turns),
        '{{ if eq .Role "user" }}' + user + "{{ end }}",
        '{{ if eq .Role "assistant" }}' + _text(turns.assistant[0]) + answer + "{{ end }}",
        '{{ if and $last (ne .Role "assistant") }}' + _text(turns.prompt) + "{{ end }}",
        "{{ end }}",
    ]
    found = "".join(parts)
    return None if '"""' in found else found


def _without_system(turns: Turns) -> str:
    """What the template writes by itself where there is no system message."""
    return "{{ if not .System }}" + _text(turns.default) + "{{ end }}" if turns.default else ""


def _if_system(turns: Turns) -> str:
    if turns.system is None:
        return ""
    before, after = turns.system
    return '{{ if eq .Role "system" }}' + _text(before) + "{{ .Content }}" + _text(after) + "{{ end }}"


def _text(text: str) -> str:
    """A fixed text in Go's template language, which would read braces as its own."""
    return text.replace("{{", '{{ "{{" }}')
