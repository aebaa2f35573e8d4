"""Labelled rows, as KTO takes them: a prompt and an answer that is desirable or not; also pairs, split up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    Style,
    parse_answer,
    parse_content,
    parse_prompt,
    split_last_answer,
    turns_of,
    with_system,
)
from alignkit.data.nodes import Node
from alignkit.data.rows.alpaca import PROMPT_KEYS, alpaca_prompt
from alignkit.data.rows.beside import answers_beside, prompt_beside
from alignkit.data.rows.preference import PREFERENCE_FORMS, PreferenceRow
from alignkit.data.rows.recognise import Form, RowKind
from alignkit.data.tokens import TokenSequence, render_answers
from alignkit.data.tools import TOOLS, parse_tools

DESIRABLE, UNDESIRABLE = "desirable", "undesirable"
LABELS = {"label": "TRL", "kto_tag": "LLaMA-Factory"}
"""Keys that tell whether an answer is desirable -> the project that uses them."""
_TRUE, _FALSE = ("true", "1", DESIRABLE), ("false", "0", UNDESIRABLE)


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A prompt with a desirable answer, an undesirable one, or (from a pair) one of each."""

    prompt: list[Message]
    desirable: list[Message] | None = None
    undesirable: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    group: str | None = None

    @property
    def loss_turns(self) -> list[Message]:
        """The messages that carry loss."""
        return [*(self.desirable or []), *(self.undesirable or [])]

    @property
    def has_no_signal(self) -> bool:
        """Whether the same answer is desirable and undesirable."""
        return self.desirable == self.undesirable

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """`desirable`, `undesirable` or both, each after the prompt. Raises DataError."""
        given = {DESIRABLE: self.desirable, UNDESIRABLE: self.undesirable}
        answers = {name: answer for name, answer in given.items() if answer is not None}
        return render_answers(self.prompt, answers, self.tools, tokenizer)


def parse_labelled(row: object, unused: set[str] | None = None) -> LabelledRow:
    """A labelled row in TRL's, OpenAI's, Alpaca's or ShareGPT's form, or a preference row. Raises RowError.

    A preference row gives a desirable and an undesirable answer to one prompt.
    """
    return LABELLED.parse(row, unused)


def _row(label: Node, prompt: list[Message], answer: list[Message], tools: Any = None) -> LabelledRow:
    given: dict[str, Any] = {"desirable": answer} if _is_desirable(label) else {"undesirable": answer}
    return LabelledRow(prompt, **given, tools=tools)


def _is_desirable(node: Node) -> bool:
    value = str(node.value).strip().lower() if isinstance(node.value, str | int) else ""
    if value not in _TRUE + _FALSE:
        raise node.refuse("true or false (whether the answer is desirable)")
    return value in _TRUE


def _trl(label: str) -> Callable[[Node], LabelledRow]:
    def parse(row: Node) -> LabelledRow:
        prompt, (answer,) = answers_beside(prompt_beside(row.at("prompt")), [row.at("completion")])
        return _row(row.at(label), prompt, answer, parse_tools(row))

    return parse


def _alpaca(label: str) -> Callable[[Node], LabelledRow]:
    def parse(row: Node) -> LabelledRow:
        answer: Message = {"role": "assistant", "content": parse_content(row.at("output"))}
        return _row(row.at(label), alpaca_prompt(row), [answer])

    return parse


def _conversation(label: str, key: str, style: Style) -> Callable[[Node], LabelledRow]:
    """A whole conversation under `key`; the turns after the last user turn are the answer."""

    def parse(row: Node) -> LabelledRow:
        turns, answer = split_last_answer(turns_of(row.at(key), "an array of turns"), row.at(key))
        prompt = with_system(row.at("system"), turns, parse_prompt(turns, style))
        return _row(row.at(label), prompt, parse_answer(answer, style), parse_tools(row))

    return parse


def _of_pair(form: Form[PreferenceRow]) -> Form[LabelledRow]:
    def parse(row: Node) -> LabelledRow:
        pair = form.parse(row)
        return LabelledRow(pair.prompt, pair.chosen, pair.rejected, pair.tools)

    return Form(f"{form.name} preference", form.required, form.optional, parse)


def _labelled_forms(label: str, writer: str) -> tuple[Form[LabelledRow], ...]:
    named = f"{writer}'s {label}" if label != "label" else "label"
    system, key = frozenset({"system"}), frozenset({label})
    return (
        Form(f"TRL ({named})", key | {"prompt", "completion"}, TOOLS, _trl(label)),
        Form(f"OpenAI ({named})", key | {"messages"}, TOOLS, _conversation(label, "messages", MESSAGES)),
        Form(f"Alpaca ({named})", key | {"instruction", "output"}, PROMPT_KEYS, _alpaca(label)),
        Form(
            f"ShareGPT ({named})",
            key | {"conversations"},
            system | TOOLS,
            _conversation(label, "conversations", TURNS),
        ),
    )


LABELLED_FORMS: tuple[Form[LabelledRow], ...] = (
    *(form for label, writer in LABELS.items() for form in _labelled_forms(label, writer)),
    *map(_of_pair, PREFERENCE_FORMS),
)
"""All forms in the order of matching: a form whose keys include another's comes first."""


def _has_no_signal(sequences: Sequence[TokenSequence]) -> bool:
    return len(sequences) == 2 and sequences[0].ids == sequences[1].ids


def _columns(sequences: Sequence[TokenSequence]) -> list[dict[str, Any]]:
    """TRL's tokenised columns, one dataset row per answer."""
    return [
        {
            "prompt_ids": one.ids[: one.prompt_length],
            "completion_ids": one.ids[one.prompt_length :],
            "label": one.name == DESIRABLE,
        }
        for one in sequences
    ]


LABELLED: RowKind[LabelledRow] = RowKind(
    "labelled",
    LabelledRow,
    LABELLED_FORMS,
    no_signal_words="the same answer as desirable and undesirable",
    has_no_signal=_has_no_signal,
    columns=_columns,
    needed=(DESIRABLE, UNDESIRABLE),
)
