"""Which tokens of a conversation carry loss, against TRL's own masks and the chat templates of real models."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import HealthCheck, given, settings

from alignkit.data.dataset import tokenise
from alignkit.data.rows import CompletionRow
from alignkit.data.tokens import IGNORED, TokenSequence
from alignkit.errors import DataError
from tests.data.completion_strategies import answers, completion_rows
from tests.data.strategies import message

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MESSAGES = [
    message("user", "Hi"),
    message("assistant", "one  word"),
    message("user", "again"),
    message("assistant", "two"),
]
ROW = CompletionRow(MESSAGES, (1, 3))
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The tiny model's template with the marks by which transformers finds the assistant's tokens."""


def templated(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def learned(sequence: TokenSequence, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(sequence.ids[start:end]) for start, end in sequence.loss_spans]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(completion_rows())
def test_the_assistants_tokens_are_those_that_transformers_masks(tokenizer: Any, row: CompletionRow) -> None:
    (sequence,) = row.render(tokenizer)
    marked = templated(tokenizer, MARKED).apply_chat_template(
        row.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert sequence.ids == marked["input_ids"]
    expected = [
        token if mask else IGNORED
        for token, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True)
    ]
    assert sequence.labels == expected


def test_only_the_learned_turns_carry_loss_with_their_end_token(tokenizer: Any) -> None:
    (both,) = ROW.render(tokenizer)
    assert learned(both, tokenizer) == ["one  word<|im_end|>", "two<|im_end|>"]
    (last,) = CompletionRow(MESSAGES, (3,)).render(tokenizer)
    assert learned(last, tokenizer) == ["two<|im_end|>"]
    assert last.ids == both.ids
    (none,) = CompletionRow(MESSAGES, ()).render(tokenizer)
    assert set(none.labels) == {IGNORED}
    assert none.dropped_at(10_000)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("qwen2_5", "<|im_end|>"),
        ("phi3", "<|end|>"),  # writes the eos token after the end of a conversation, which carries no loss
    ],
)
def test_templates_of_real_models(tokenizer: Any, name: str, ends: str) -> None:
    real = templated(tokenizer, (TEMPLATES / f"{name}.jinja").read_text())
    real.add_special_tokens({"additional_special_tokens": [ends]})
    (sequence,) = ROW.render(real)
    assert [text.strip() for text in learned(sequence, real)] == [f"one  word{ends}", f"two{ends}"]
    assert sequence.ids == real.apply_chat_template(MESSAGES, tokenize=True, return_dict=True)["input_ids"]


def test_a_template_that_rewrites_earlier_turns_gives_one_sequence_a_turn(tokenizer: Any) -> None:
    qwen3 = templated(tokenizer, (TEMPLATES / "qwen3.jinja").read_text())
    first, last = ROW.render(qwen3)
    assert (first.name, last.name) == ("message 2", "message 4")
    assert learned(first, qwen3)[0].endswith("one  word<|im_end|>")
    assert learned(last, qwen3)[0].endswith("two<|im_end|>")
    assert "one  word" in qwen3.decode(last.ids[: last.prompt_length])
    (only_last,) = CompletionRow(MESSAGES, (3,)).render(qwen3)
    assert only_last.ids == last.ids


def test_a_template_whose_answer_changes_the_prompt_is_refused(tokenizer: Any) -> None:
    count = templated(tokenizer, "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="changes the text before message 2"):
        ROW.render(count)
    with pytest.raises(DataError, match=r"^row 1: the model's chat template changes"):
        tokenise([ROW], count, "supervised", 64)


def test_cut_and_dropped(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    (whole,) = ROW.render(tokenizer)
    long = CompletionRow([message("user", "long " * 200), MESSAGES[1]], (1,))
    idle = CompletionRow(MESSAGES, ())
    limit = whole.loss_spans[1][0] + 1
    with caplog.at_level(logging.WARNING):
        dataset = tokenise([ROW, long, idle], tokenizer, "supervised", limit)
    assert dataset["input_ids"][:] == [whole.ids[:limit]]
    assert dataset["labels"][:] == [whole.labels[:limit]]
    assert (
        sum(label != IGNORED for label in dataset["labels"][0])
        == 1 + whole.loss_spans[0][1] - whole.loss_spans[0][0]
    )
    assert "2 of 3 sequences are dropped" in caplog.text
    with pytest.raises(DataError, match="none of 1 rows has a token that carries loss within max_length 16"):
        tokenise([long], tokenizer, "supervised", 16)


def test_a_tool_call_is_learned_as_the_template_writes_it(tokenizer: Any) -> None:
    qwen = templated(tokenizer, (TEMPLATES / "qwen2_5.jinja").read_text())
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        message("user", "1+1?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        message("tool", "2"),
        message("assistant", "Two."),
    ]
    row = CompletionRow(messages, answers(messages), [{"type": "function", "function": {"name": "add"}}])
    (sequence,) = row.render(qwen)
    called, answered = learned(sequence, qwen)
    assert '"name": "add"' in called
    assert answered == "Two.<|im_end|>"
    assert "# Tools" in qwen.decode(sequence.ids[: sequence.prompt_length])
