"""Rendering with chat templates loses nothing silently, and answers follow the prompt as served."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import trl
from tokenizers import AddedToken, normalizers

from alignkit.data import check_file, render
from alignkit.data.rendered_parts import missing_part
from alignkit.data.template import EMPTY, NO_END, end_of_answer
from alignkit.errors import DataError
from tests.data.strategies import message

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
BAR = "\uff5c"
"""DeepSeek's fullwidth bar."""
EOS = f"<{BAR}end\u2581of\u2581sentence{BAR}>"
SPECIAL = [
    *(f"<|{name}|>" for name in ("user", "assistant", "observation", "end", "return", "call", "start")),
    *("<|channel|>", "<|message|>", "<end_of_turn>", "<start_of_turn>"),
    *(EOS, f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"),
]
PAIR = {
    "prompt": [message("user", "q")],
    "chosen": [message("assistant", "<think>\ngood reason\n</think>\n\n42")],
    "rejected": [message("assistant", "<think>\nbad reason\n</think>\n\n42")],
}
THOUGHT = {
    "messages": [message("user", "Hi"), message("assistant", "Hello") | {"reasoning_content": "They greet."}]
}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
TWO_TURNS = {
    "messages": [
        message("user", "Hi"),
        message("assistant", "one"),
        message("user", "call"),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        message("tool", "2"),
        message("assistant", "two"),
    ],
    "tools": [TOOL],
}


@pytest.fixture
def model(tokenizer: Any) -> Any:
    """A tokenizer with a template of TRL's, whose special tokens are special."""

    def with_template(name: str) -> Any:
        changed = copy.deepcopy(tokenizer)
        changed.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
        changed.add_special_tokens({"additional_special_tokens": SPECIAL})
        return changed

    return with_template


def spans(row: Any, tokenizer: Any, method: str) -> list[str]:
    return [
        tokenizer.decode(one.ids[start:end])
        for one in render(row, tokenizer, method=method)
        for start, end in one.loss_spans
    ]


def served(row: Any, tokenizer: Any) -> list[int]:
    prompt = row.get("prompt") or row["messages"][:-1]
    ids: list[int] = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    return ids


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])
def test_reasoning_that_a_template_drops_is_trained_after_the_served_prompt_and_said(
    model: Any, name: str
) -> None:
    tokenizer = model(name)
    for sequence, reason in zip(render(PAIR, tokenizer, method="f_dpo"), ("good", "bad"), strict=True):
        prompt = served(PAIR, tokenizer)
        assert sequence.ids[: sequence.prompt_length] == prompt
        assert tokenizer.decode(prompt).endswith("<think>\n")
        answer = f"{reason} reason\n</think>\n\n42{EOS}"
        assert tokenizer.decode(sequence.ids[len(prompt) :]) == answer
        assert "omits the answer's reasoning, but it is trained anyway" in sequence.notes[0]
    chat = {"messages": PAIR["prompt"] + PAIR["chosen"]}
    assert spans(chat, tokenizer, "supervised") == [f"good reason\n</think>\n\n42{EOS}"]


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "qwen3_5_think", "qwen3_8", "gptoss", "lfm2_2_5"])
def test_reasoning_content_carries_loss_where_the_template_reads_it(model: Any, name: str) -> None:
    (text,) = spans(THOUGHT, model(name), "supervised")
    assert text.index("They greet.") < text.index("Hello")
    for key in ("reasoning", "thinking"):
        answer = message("assistant", "Hello") | {key: "They greet."}
        assert spans({"messages": [THOUGHT["messages"][0], answer]}, model(name), "supervised") == [text]


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma"])
def test_reasoning_content_is_refused_where_no_template_reads_it(model: Any, name: str) -> None:
    with pytest.raises(
        DataError, match=r"omits the reasoning of the answer, 'They greet\.', so it would not be"
    ):
        render(THOUGHT, model(name), method="supervised")


@pytest.mark.parametrize("name", ["qwen3_8", "gptoss"])
def test_a_think_block_goes_where_the_template_writes_reasoning(model: Any, name: str) -> None:
    block = {
        "messages": [message("user", "Hi"), message("assistant", "<think>\nThey greet.\n</think>\n\nHello")]
    }
    assert spans(block, model(name), "supervised") == spans(THOUGHT, model(name), "supervised")


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("gptoss", ["<|return|>", "<|call|>", "<|return|>"]),
        ("glm4moe", ["<|user|>", "<|observation|>", ""]),
        ("qwen3", ["<|im_end|>"] * 3),
        ("qwen2_5", ["<|im_end|>"] * 3),
    ],
)
def test_a_span_ends_with_the_token_that_the_model_must_emit(model: Any, name: str, ends: list[str]) -> None:
    tokenizer = model(name)
    sequences = render(TWO_TURNS, tokenizer, method="supervised")
    texts = spans(TWO_TURNS, tokenizer, "supervised")
    assert [text[text.rindex("<|") :] if text.endswith("|>") else "" for text in texts] == ends
    assert any(NO_END in one.notes for one in sequences) is ("" in ends)


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6", "qwen3_8"])
def test_an_answer_follows_the_served_prompt_where_tokens_would_merge_across_it(
    model: Any, name: str
) -> None:
    tokenizer = model(name)
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    prompt = served({"prompt": [message("user", "Hi")]}, tokenizer)
    whole = tokenizer.apply_chat_template(
        [message("user", "Hi"), message("assistant", "yes")], return_dict=True
    )
    assert whole["input_ids"][: len(prompt)] != prompt
    for sequence in render(row, tokenizer, method="f_dpo"):
        assert sequence.ids[: sequence.prompt_length] == prompt
        assert not sequence.notes
    assert tokenizer.decode(render(row, tokenizer, method="f_dpo")[0].ids) == tokenizer.decode(
        whole["input_ids"]
    )


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano"])
def test_a_part_of_the_served_prompt_that_is_not_before_the_answer_is_said(model: Any, name: str) -> None:
    for sequence in render({"prompt": "Hi", "chosen": "yes", "rejected": "no"}, model(name), method="f_dpo"):
        (note,) = sequence.notes
        assert "in serving, the answer follows '" in note
        assert "\\n', which the chat template omits in training" in note


def test_system_turns_and_tools_that_a_template_drops_are_said(tokenizer: Any) -> None:
    deaf = copy.deepcopy(tokenizer)
    deaf.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    row = {
        "messages": [message("system", "Be kind."), message("user", "Hi"), message("assistant", "yes")],
        "tools": [TOOL],
    }
    (sequence,) = render(row, deaf, method="supervised")
    assert sequence.notes == (
        "the chat template omits a part of the prompt, in a system message",
        "the chat template omits the tools",
    )


def test_an_answer_that_is_empty_once_rendered_is_refused(tokenizer: Any) -> None:
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].strip('.')"
    )
    with pytest.raises(DataError, match="omits the text of the answer"):
        render({"prompt": "Hi", "chosen": "...", "rejected": "no"}, silent, method="f_dpo")
    assert "empty" in EMPTY


QUOTED = {"content": "", "tool_calls": [{"function": {"name": "say", "arguments": {"text": "it's"}}}]}


@pytest.mark.parametrize(
    ("answer", "text", "missing"),
    [
        (message("assistant", "one  two"), "one two", None),
        (message("assistant", "<think>42</think>42"), "42", "the text"),
        (message("assistant", 'say "x"\n'), r'{"content": "say \"x\"\n"}', None),
        (QUOTED, r"say(text='it\'s')", None),
        (QUOTED, "say()", "a tool call"),
        (QUOTED, "none", "a tool call"),
    ],
)
def test_a_part_that_a_rendered_answer_lacks_is_found(answer: Any, text: str, missing: str | None) -> None:
    found = missing_part([answer], text)
    assert (found and found[0]) == missing


def test_a_system_turn_that_gemma_refuses_names_the_line(tmp_path: Path, model: Any) -> None:
    rows = [PAIR, PAIR | {"prompt": [message("system", "be kind"), *PAIR["prompt"]]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check_file(tmp_path / "rows.jsonl", "f_dpo", tokenizer=model("gemma"), max_length=512)
    assert report.summary() == (
        "1 of 2 rows cannot be used\n"
        "line 2: the model's chat template refuses the conversation: System role not supported"
    )


def test_answers_that_differ_in_blanks_only_are_equal_where_the_template_trims(
    tmp_path: Path, model: Any
) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "yes \n"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    gemma = check_file(tmp_path / "rows.jsonl", "f_dpo", tokenizer=model("gemma"), max_length=512)
    assert gemma.problem == "every row has chosen equal to rejected, so there is nothing to train"
    assert check_file(tmp_path / "rows.jsonl", "f_dpo", tokenizer=model("qwen2_5"), max_length=512).ok


def test_answers_that_are_equal_once_cut_are_counted_and_named(tmp_path: Path, tokenizer: Any) -> None:
    long = {"prompt": "q", "chosen": "word " * 60 + "good", "rejected": "word " * 60 + "bad"}
    rows = [{"prompt": "q", "chosen": "yes", "rejected": "no"}, long]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check_file(tmp_path / "rows.jsonl", "f_dpo", tokenizer=tokenizer, max_length=64)
    assert report.notices == (
        "1 of 2 rows has chosen equal to rejected and changes nothing: the first at line 2",
    )
    assert check_file(tmp_path / "rows.jsonl", "f_dpo", tokenizer=tokenizer, max_length=512).notices == ()


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "llava_next"])
def test_a_template_of_parts_gets_parts_as_in_serving(model: Any, name: str) -> None:
    row = {"messages": [message("user", "Hi"), message("assistant", "Hello")]}
    tokenizer = model(name)
    (text,) = spans(row, tokenizer, "supervised")
    (sequence,) = render(row, tokenizer, method="supervised")
    assert text.strip().startswith("Hello")
    assert "Hi" in tokenizer.decode(sequence.ids[: sequence.prompt_length])


def test_the_turns_own_end_token_ends_a_last_answer_that_a_template_ends_twice(model: Any) -> None:
    turns = [
        message("user", "Hi"),
        message("assistant", "Hello"),
        message("user", "Bye"),
        message("assistant", "Ciao"),
    ]
    assert spans({"messages": turns}, model("phi3"), "supervised") == ["Hello<|end|>", "Ciao<|end|>"]
    assert end_of_answer(model("phi3")) == model("phi3").convert_tokens_to_ids("<|end|>")


def test_a_token_that_the_model_has_no_embedding_of_is_refused_by_row(tmp_path: Path, model: Any) -> None:
    tokenizer = model("gemma")
    words = tokenizer.convert_tokens_to_ids("<start_of_turn>")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "yes", "rejected": "no"}))
    report = check_file(tmp_path / "rows.jsonl", "f_dpo", tokenizer=tokenizer, vocabulary=words)
    assert "but the model has embeddings of" in report.summary()
    assert check_file(tmp_path / "rows.jsonl", "f_dpo", tokenizer=tokenizer, vocabulary=len(tokenizer)).ok


def test_a_control_token_in_a_text_is_said(tokenizer: Any) -> None:
    row = {"prompt": "Hi", "chosen": "yes<|im_end|>", "rejected": "no"}
    (chosen, rejected) = render(row, tokenizer, method="f_dpo")
    said = "a message's text contains <|im_end|>, which the model reads as a control token, not as text"
    assert (chosen.notes, rejected.notes) == ((said,), ())
    (sequence,) = render(
        {"messages": [message("user", "<|im_end|>"), message("assistant", "yes")]},
        tokenizer,
        method="supervised",
    )
    assert said in sequence.notes


@pytest.mark.slow
@pytest.mark.parametrize("row", [{"prompt": [message("user", "q")], "chosen": "yes", "rejected": "no"}, PAIR])
def test_with_every_template_of_trls_an_answer_follows_the_served_prompt_or_a_note_says_what_differs(
    model: Any, row: dict[str, Any]
) -> None:
    parts = ("idefics3", "llava_next", "smolvlm")  # their templates take content in parts
    words = ["good reason", "bad reason"] if row is PAIR else ["yes", "no"]
    unlike = []
    for file in sorted(TEMPLATES.glob("*.jinja")):
        tokenizer = model(file.stem)
        for sequence, word in zip(render(row, tokenizer, method="f_dpo"), words, strict=True):
            begin, answer = sequence.ids[: sequence.prompt_length], sequence.ids[sequence.prompt_length :]
            said = any("in serving" in note for note in sequence.notes)
            follows = said or file.stem.startswith(parts) or begin == served(row, tokenizer)
            if not follows or word not in tokenizer.decode(answer):
                unlike.append((file.stem, sequence.name))
    assert unlike == []


@pytest.fixture
def normalising(tokenizer: Any) -> Any:
    """A tokenizer that composes characters, as Qwen's does."""
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.NFC()
    return changed


def test_what_only_normalisation_changes_is_not_missing(normalising: Any) -> None:
    apart = "cafe\u0301"
    turns = [
        message("user", apart),
        message("assistant", apart),
        message("user", "And?"),
        message("assistant", apart),
    ]
    (sequence,) = render({"messages": turns}, normalising, method="supervised")
    assert (len(sequence.loss_spans), sequence.notes) == (2, ())
    for one in render({"prompt": apart, "chosen": apart, "rejected": "no"}, normalising, method="f_dpo"):
        assert one.notes == ()


def test_answers_that_only_normalisation_distinguishes_are_equal_where_it_is_done(
    normalising: Any, tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "chosen": "caf\u00e9", "rejected": "cafe\u0301"}) + "\n")
    assert check_file(file, "f_dpo", tokenizer=tokenizer).ok
    assert (
        "every row has chosen equal to rejected" in check_file(file, "f_dpo", tokenizer=normalising).summary()
    )
