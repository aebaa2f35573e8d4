"""Tokens of a pair are those that TRL's trainer makes, whatever the chat template does."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from alignkit.data.dataset import load_rows, to_trl
from alignkit.data.formats import PreferenceRow
from alignkit.data.schemas import COMPLETION, schema_for
from alignkit.data.tokens import load_tokenizer, render_pair
from alignkit.errors import DataError, ModelError
from tests.data.strategies import message
from tests.tiny import CHAT_TEMPLATE

THINKING = CHAT_TEMPLATE.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think></think>' }}")
"""Ends the generation prompt with what whole conversations lack, as some models' templates do."""
WITH_TOOLS = (
    "{% if tools is not none %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}{{ message.keys() | list | tojson }}{{ message.tool_calls | tojson }}{% endfor %}"
).replace("message.tool_calls |", "message.get('tool_calls') |") + CHAT_TEMPLATE
"""Writes out the tools and every key of a message: a key that a dataset adds on its way would show."""

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 0.5}}}
ROWS = [
    PreferenceRow(
        [message("user", "Hi")], [message("assistant", "yes")], [message("assistant", "no, never")]
    ),
    PreferenceRow(
        [
            message("system", "Be brief."),
            message("user", "naïve ☕?"),
            message("assistant", "what?"),
            message("user", "1 + 0.5?") | {"name": "ann"},
        ],
        [
            message("assistant", "") | {"tool_calls": [CALL]},
            message("tool", "1.5"),
            message("assistant", "1.5"),
        ],
        [message("assistant", "two")],
        tools=[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    ),
    PreferenceRow([message("user", "same")], [message("assistant", "a")], [message("assistant", "a")]),
]


def test_a_template_that_leaves_calls_out_is_refused_where_they_are_taught(
    tmp_path: Path, tokenizer: Any
) -> None:
    calls = [message("assistant", "") | {"tool_calls": [CALL]}]
    context = [message("user", "Hi"), *calls, message("tool", "1.5")]
    answer = [message("assistant", "1.5")]
    rows = {
        "f_dpo": {"prompt": context[:1], "chosen": calls, "rejected": answer},
        "d2o": {"prompt": context[:1], "rejected": answer, "samples": [calls]},
        "supervised": {"messages": context[:1] + calls},
    }
    able = copy.deepcopy(tokenizer)
    able.chat_template = WITH_TOOLS
    for method, row in rows.items():
        (tmp_path / "rows.jsonl").write_text("\n" + json.dumps(row), encoding="utf-8")
        assert load_rows(tmp_path / "rows.jsonl", method, able)
        with pytest.raises(
            DataError, match="row 1: the answer calls a tool, which the model's chat template"
        ):
            load_rows(tmp_path / "rows.jsonl", method, tokenizer)
        schema = schema_for(method)
        with pytest.raises(DataError, match="the answer calls a tool"):
            schema.render(schema.parse(row, set()), tokenizer)
    learned = {"messages": [*context, *answer]}
    learned["messages"][1] = calls[0] | {"weight": 0}
    assert COMPLETION.render(COMPLETION.parse(learned, set()), tokenizer), (
        "what is context is written as at serving"
    )


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, THINKING, WITH_TOOLS], ids=["plain", "thinking", "tools"]
)
def test_tokens_are_those_of_trls_trainer(
    tmp_path: Path, model_dir: Path, tokenizer: Any, template: str
) -> None:
    mine = copy.deepcopy(tokenizer)
    mine.chat_template = template
    rows = ROWS if template == WITH_TOOLS else [row for row in ROWS if row.tools is None]
    config = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=config,
        processing_class=mine,
        train_dataset=to_trl(rows),
    )
    for row, prepared in zip(rows, trainer.train_dataset, strict=True):
        pair = render_pair(row, mine)
        assert (pair.prompt, pair.chosen, pair.rejected) == (
            prepared["prompt_ids"],
            prepared["chosen_ids"],
            prepared["rejected_ids"],
        )
        assert pair.chosen


def test_prompt_and_answer_are_the_whole_conversation(tokenizer: Any) -> None:
    row = ROWS[0]
    pair = render_pair(row, tokenizer)
    assert tokenizer.decode(pair.prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.rejected) == "no, never<|im_end|>\n"
    sequence = pair.sequences()[1]
    assert (sequence.name, sequence.ids) == ("rejected", pair.prompt + pair.rejected)
    assert sequence.learned == ((len(pair.prompt), len(sequence.ids)),)
    assert sequence.dropped_at(len(pair.prompt))
    assert not sequence.dropped_at(len(pair.prompt) + 1)


def test_a_template_that_is_missing_or_refuses_is_told(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(
        DataError, match=r"no chat template, so .*: use an instruct model, or put a chat_template"
    ):
        render_pair(ROWS[0], bare)
    bare.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match="chat template refuses the conversation: System role not supported"):
        render_pair(ROWS[0], bare)


def test_a_model_without_template_or_tokenizer(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(tmp_path)
