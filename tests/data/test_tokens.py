"""Tokens of a pair are those that TRL's trainer makes, whatever the chat template does."""

import copy
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from alignkit.data import RowError, render, tokenise
from alignkit.data.dataset import to_trl
from alignkit.data.rows import PreferenceRow
from alignkit.data.schemas import schema_for
from alignkit.data.tokens import chat_tokenizer
from alignkit.errors import DataError, ModelError
from tests.data.strategies import message
from tests.preference import pair_ids
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


def test_a_template_that_leaves_calls_out_is_refused_where_they_carry_loss(tokenizer: Any) -> None:
    calls = [message("assistant", "") | {"tool_calls": [CALL]}]
    context = [message("user", "Hi"), *calls, message("tool", "1.5")]
    answer = [message("assistant", "1.5")]
    rows = {
        "f_dpo": {"prompt": context[:1], "chosen": calls, "rejected": answer},
        "d2o": {"prompt": context[:1], "rejected": answer, "samples": [calls]},
        "supervised": {"messages": context[:1] + calls},
    }
    able = copy.deepcopy(tokenizer)
    able.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
    for method, row in rows.items():
        assert render(row, able, method=method)
        with pytest.raises(DataError, match=r"^the answer calls a tool, which the model's chat template"):
            render(row, tokenizer, method=method)
        with pytest.raises(DataError, match=r"^row 1: the answer calls a tool"):
            tokenise([schema_for(method).parse(row)], tokenizer, method, 512)
    weighted: dict[str, Any] = {"messages": [*context, *answer]}
    weighted["messages"][1] = calls[0] | {"weight": 0}
    assert render(weighted, tokenizer, method="supervised"), "what is context is written as at serving"


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
    ours = tokenise(rows, mine, "f_dpo", 512)
    assert ours.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    for own, theirs in zip(ours, trainer.train_dataset, strict=True):
        assert own == {name: theirs[name] for name in own}
        assert own["chosen_ids"]


def test_prompt_and_answer_are_the_whole_conversation(tokenizer: Any) -> None:
    row = ROWS[0]
    pair = pair_ids(row, tokenizer)
    assert tokenizer.decode(pair.prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.rejected) == "no, never<|im_end|>\n"
    sequence = row.render(tokenizer)[1]
    assert (sequence.name, sequence.ids) == ("rejected", pair.prompt + pair.rejected)
    assert sequence.loss_spans == ((len(pair.prompt), len(sequence.ids)),)
    assert sequence.dropped_at(len(pair.prompt))
    assert not sequence.dropped_at(len(pair.prompt) + 1)


def test_a_rows_sequences_are_the_same_from_its_json_and_from_its_record(tokenizer: Any) -> None:
    written = {"prompt": "Hi", "chosen": "yes", "rejected": "no, never"}
    assert render(written, tokenizer, method="f_dpo") == render(ROWS[0], tokenizer, method="dpo")
    with pytest.raises(
        TypeError, match=r"expected a JSON object or a CompletionRow for 'supervised', found Pref"
    ):
        render(ROWS[0], tokenizer, method="supervised")
    with pytest.raises(RowError, match="/rejected: expected the key of a row in TRL's form"):
        render({"prompt": "Hi", "chosen": "yes"}, tokenizer, method="f_dpo")
    with pytest.raises(DataError, match="unknown method 'ppo': expected one of f_dpo, dpo, "):
        render(written, tokenizer, method="ppo")


def test_a_rendered_sequence_is_cut_at_max_length_and_says_by_how_much(tokenizer: Any) -> None:
    whole = render(ROWS[0], tokenizer, method="f_dpo")[1]
    cut = render(ROWS[0], tokenizer, method="f_dpo", max_length=len(whole.ids) - 2)[1]
    assert (cut.ids, cut.cut, whole.cut) == (whole.ids[:-2], 2, 0)
    assert cut.loss_spans == ((whole.prompt_length, len(whole.ids) - 2),)


def test_a_method_may_be_given_by_its_class(tokenizer: Any) -> None:
    own = type("Margin", (), {"rows": "preference"})
    assert render(ROWS[0], tokenizer, method=own) == render(ROWS[0], tokenizer, method="f_dpo")
    with pytest.raises(
        DataError,
        match="Odd: expected `rows` to be one of preference, completion, dispreferred, labelled, found",
    ):
        render(ROWS[0], tokenizer, method=type("Odd", (), {"rows": "triples"}))


def test_a_pair_whose_prompt_fills_max_length_is_left_out(tokenizer: Any) -> None:
    long = PreferenceRow([message("user", "long " * 100)], ROWS[0].chosen, ROWS[0].rejected)
    assert len(tokenise([ROWS[0], long], tokenizer, "f_dpo", 64)) == 1
    with pytest.raises(DataError, match="none of 1 rows has a token that carries loss within max_length 64"):
        tokenise([long], tokenizer, "f_dpo", 64)


def test_a_template_that_is_missing_or_refuses_is_told(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(
        DataError,
        match=r"no chat template, so .*: use an instruct model, name a template in chat_template, such as",
    ):
        ROWS[0].render(bare)
    bare.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match="chat template refuses the conversation: System role not supported"):
        ROWS[0].render(bare)


def test_a_model_without_template_or_tokenizer(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"^model: cannot load"):
        chat_tokenizer(tmp_path, field="model")
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no chat template"):
        chat_tokenizer(tmp_path, field="model")
