"""Dispreferred rows: a prompt with one dispreferred answer, and optionally the model's own answers (samples)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import (
    MESSAGES,
    TURNS,
    Message,
    Style,
    answer_turns,
    conversation_of,
    parse_answer,
    parse_prompt,
    split_last_answer,
    turns_of,
)
from alignkit.data.nodes import Node
from alignkit.data.rows.alpaca import PROMPT_KEYS, alpaca_prompt
from alignkit.data.rows.beside import answers_beside
from alignkit.data.rows.preference import PREFERENCE_FORMS, PreferenceRow
from alignkit.data.rows.prompts import openai_prompt, orca_prompt, sharegpt_prompt, trl_prompt
from alignkit.data.rows.recognise import Form, RowKind
from alignkit.data.tokens import TokenSequence, render_answers
from alignkit.data.tools import TOOLS, parse_tools

MAX_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class DispreferredRow:
    """One conversation with a dispreferred answer. `samples` is None if answers are to be sampled from the model."""

    prompt: list[Message]
    rejected: list[Message]
    samples: list[list[Message]] | None = None
    tools: list[dict[str, Any]] | None = None
    group: str | None = None

    @property
    def loss_turns(self) -> list[Message]:
        """The messages that carry loss."""
        return [message for answer in (self.rejected, *(self.samples or [])) for message in answer]

    @property
    def has_no_signal(self) -> bool:
        """Whether all samples equal the dispreferred answer, so that their gradients cancel."""
        return self.samples is not None and all(sample == self.rejected for sample in self.samples)

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """`rejected`, then `sample 1`, … from the file, each after the prompt. Raises DataError."""
        samples = {f"sample {number}": sample for number, sample in enumerate(self.samples or [], start=1)}
        return render_answers(self.prompt, {"rejected": self.rejected, **samples}, self.tools, tokenizer)


def parse_dispreferred(row: object, unused: set[str] | None = None) -> DispreferredRow:
    """A row in one of DISPREFERRED_FORMS. Raises RowError.

    Names of unused keys, including that of a preferred answer, are added to `unused`.
    """
    return DISPREFERRED.parse(row, unused)


def _openai(row: Node) -> DispreferredRow:
    prompt, body = openai_prompt(row)
    rejected = parse_answer(turns_of(row.at("non_preferred_output"), _ANSWER), MESSAGES)
    return DispreferredRow(prompt, rejected, _samples(row.at("samples"), MESSAGES), parse_tools(body))


def _beside(prompt_of: Callable[[Node], list[Message]]) -> Callable[[Node], DispreferredRow]:
    """A parser of rows with the answer under `rejected`, beside the prompt."""

    def parse(row: Node) -> DispreferredRow:
        prompt, (rejected,) = answers_beside(prompt_of(row), [row.at("rejected")], _ANSWER)
        return DispreferredRow(prompt, rejected, _samples(row.at("samples"), MESSAGES), parse_tools(row))

    return parse


def _trl_implicit(row: Node) -> DispreferredRow:
    """A whole conversation, as messages or HH's plain text; the prompt ends with its last user turn."""
    begin, rejected = split_last_answer(conversation_of(row.at("rejected")), row.at("rejected"))
    return DispreferredRow(
        prompt=parse_prompt(begin, MESSAGES),
        rejected=parse_answer(rejected, MESSAGES),
        samples=_samples(row.at("samples"), MESSAGES),
        tools=parse_tools(row),
    )


def _sharegpt(row: Node) -> DispreferredRow:
    return DispreferredRow(
        prompt=sharegpt_prompt(row),
        rejected=parse_answer(answer_turns(row.at("rejected")), TURNS),
        samples=_samples(row.at("samples"), TURNS),
        tools=parse_tools(row),
    )


def _of_pair(form: Form[PreferenceRow]) -> Form[DispreferredRow]:
    """A form of preference rows whose preferred answer is not used."""

    def parse(row: Node) -> DispreferredRow:
        pair = form.parse(row)
        return DispreferredRow(pair.prompt, pair.rejected, tools=pair.tools)

    return Form(f"{form.name} preference", form.required, form.optional, parse)


def _samples(node: Node, style: Style) -> list[list[Message]] | None:
    if not node.given:
        return None
    entries = node.entries("an array of answers (remove the key to sample them from the model)")
    if len(entries) > MAX_SAMPLES:
        raise node.refuse(f"at most {MAX_SAMPLES:,} answers", f"{len(entries):,}")
    return [parse_answer(answer_turns(entry), style) for entry in entries]


_ANSWER = "text, or an array of messages"
_SAMPLES = frozenset({"samples"})
_SYSTEM = frozenset({"system"})
DISPREFERRED_FORMS: tuple[Form[DispreferredRow], ...] = (
    Form("OpenAI", frozenset({"input", "non_preferred_output"}), _SAMPLES, _openai),
    Form("ShareGPT", frozenset({"conversations", "rejected"}), _SAMPLES | _SYSTEM | TOOLS, _sharegpt),
    Form("TRL", frozenset({"prompt", "rejected"}), _SAMPLES | TOOLS, _beside(trl_prompt)),
    Form(
        "Alpaca",
        frozenset({"instruction", "rejected"}),
        _SAMPLES | PROMPT_KEYS | TOOLS,
        _beside(alpaca_prompt),
    ),
    Form("Orca", frozenset({"question", "rejected"}), _SAMPLES | _SYSTEM | TOOLS, _beside(orca_prompt)),
    *(_of_pair(form) for form in PREFERENCE_FORMS if form.name.startswith("ms-swift")),
    Form("TRL (without prompt)", frozenset({"rejected"}), _SAMPLES | TOOLS, _trl_implicit),
)
"""All forms in the order of matching: a form whose keys include another's comes first."""


def _has_no_signal(sequences: Sequence[TokenSequence]) -> bool:
    rejected, *samples = sequences
    return bool(samples) and all(sample.ids == rejected.ids for sample in samples)


def _columns(sequences: Sequence[TokenSequence]) -> list[dict[str, Any]]:
    """Token ids of the prompt, the dispreferred answer and the samples."""
    rejected, *samples = sequences
    start = rejected.prompt_length
    return [
        {
            "prompt_ids": rejected.ids[:start],
            "rejected_ids": rejected.ids[start:],
            "sample_ids": [sample.ids[start:] for sample in samples],
        }
    ]


DISPREFERRED: RowKind[DispreferredRow] = RowKind(
    "dispreferred",
    DispreferredRow,
    DISPREFERRED_FORMS,
    no_signal_words="no sample but the dispreferred answer itself",
    has_no_signal=_has_no_signal,
    columns=_columns,
    together=True,
)
