"""Rows with a dispreferred answer only: every form gives the same row, and what is wrong is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.data.dataset import load_rows, to_dispreferred
from alignkit.data.nodes import RowError
from alignkit.data.rows import DispreferredRow, parse_dispreferred
from alignkit.data.validation import check_file
from alignkit.errors import DataError
from tests.data.rows.test_preference import NEAR
from tests.data.strategies import FORMS, TEXT, message, rows

HI, NO = [message("user", "Hi")], [message("assistant", "no")]
TRL = {"prompt": "Hi", "rejected": "no"}


@st.composite
def dispreferred(draw: st.DrawFn) -> DispreferredRow:
    pair = draw(rows())
    samples = draw(st.none() | st.lists(TEXT.map(lambda text: [message("assistant", text)]), min_size=1))
    return DispreferredRow(pair.prompt, pair.rejected, samples)


def openai(row: DispreferredRow) -> dict[str, Any]:
    return {"input": {"messages": row.prompt}, "non_preferred_output": row.rejected, "samples": row.samples}


def trl(row: DispreferredRow) -> dict[str, Any]:
    return {"prompt": row.prompt, "rejected": row.rejected, "samples": row.samples}


def trl_text_samples(row: DispreferredRow) -> dict[str, Any]:
    texts = None if row.samples is None else [sample[0]["content"] for sample in row.samples]
    return trl(row) | {"samples": texts, "tools": None}


def trl_implicit(row: DispreferredRow) -> dict[str, Any]:
    return {"rejected": row.prompt + row.rejected, "samples": row.samples}


def sharegpt(row: DispreferredRow) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}

    def turn(one: dict[str, str]) -> dict[str, str]:
        return {"from": names[one["role"]], "value": one["content"]}

    return {
        "conversations": [turn(one) for one in row.prompt],
        "rejected": turn(row.rejected[0]),
        "samples": None if row.samples is None else [turn(sample[0]) for sample in row.samples],
    }


def outcome(value: Any) -> DispreferredRow | RowError:
    try:
        return parse_dispreferred(value)
    except RowError as error:
        return error


WRITTEN = [openai, trl, trl_text_samples, trl_implicit, sharegpt]


@given(dispreferred(), st.sampled_from(WRITTEN))
def test_every_form_gives_the_same_row(
    row: DispreferredRow, form: Callable[[DispreferredRow], dict[str, Any]]
) -> None:
    unused: set[str] = set()
    assert parse_dispreferred(form(row), unused) == row
    assert not unused


@given(rows(), st.sampled_from(FORMS))
def test_a_preference_row_is_taken_and_its_preferred_answer_named_as_unused(
    pair: Any, form: Callable[[Any], dict[str, Any]]
) -> None:
    unused: set[str] = set()
    row = parse_dispreferred(form(pair), unused)
    assert (row.prompt, row.rejected, row.samples) == (pair.prompt, pair.rejected, None)
    assert unused in ({"chosen"}, {"preferred_output"})


@given(dispreferred(), st.sampled_from(WRITTEN), st.sampled_from(["prompt", "rejected", "samples"]), NEAR)
def test_any_value_gives_a_row_or_a_row_error(
    row: DispreferredRow, form: Callable[[DispreferredRow], dict[str, Any]], key: str, value: Any
) -> None:
    for candidate in (value, form(row) | {key: value}):
        found = outcome(candidate)
        assert isinstance(found, DispreferredRow) or len(str(found).encode()) < 600


@pytest.mark.parametrize(
    ("row", "pointer", "sentence"),
    [
        (3, "", "expected an object, found the number 3"),
        ({}, "", "expected the keys of a dispreferred row (OpenAI: input, non_preferred_output; ShareGPT: "),
        ({"prompt": "a"}, "/rejected", "expected the key of a row in TRL's form, found a missing key"),
        ({"prompt": "a", "chosen": "b"}, "/rejected", "found a missing key"),
        (
            TRL | {"samples": []},
            "/samples",
            "remove the key to sample them from the model), found an array without",
        ),
        (TRL | {"samples": "yes"}, "/samples", "expected an array of answers"),
        (TRL | {"samples": ["yes", " "]}, "/samples/1", "found the text ' '"),
        (TRL | {"samples": ["yes", 3]}, "/samples/1", "expected text, or an array of messages, found the"),
        (TRL | {"samples": [[]]}, "/samples/0", "found an array without entries"),
        (TRL | {"samples": [HI]}, "/samples/0/0/role", "expected a turn of an answer (assistant)"),
        (TRL | {"samples": ["y"] * 1025}, "/samples", "expected at most 1,024 answers, found 1,025"),
        (TRL | {"rejected": ""}, "/rejected", "found an empty text"),
        (
            TRL | {"rejected": [message("user", "Bye"), *NO]},
            "/rejected/0/role",
            "only an answer, or a conversation",
        ),
        (
            {"rejected": "no"},
            "/rejected",
            "because there is no prompt key: an array of messages, or text that",
        ),
        ({"rejected": HI}, "/rejected", "expected a user turn and an answer after it, found user"),
        ({"rejected": NO}, "/rejected", "found assistant"),
    ],
)
def test_what_is_wrong_is_named(row: Any, pointer: str, sentence: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_dispreferred(row)
    assert caught.value.pointer == pointer
    assert sentence in f"expected {caught.value.expected}, found {caught.value.found}"


def test_a_report_says_that_preferred_answers_are_not_used_and_what_is_idle(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "a", "chosen": "yes", "rejected": "no"}\n'
        '{"prompt": "a", "rejected": "no", "samples": ["no", "no"]}\n'
    )
    report = check_file(path, "d2o")
    assert report.ok
    assert report.notices == (
        "1 of 2 rows has no sample but the dispreferred answer itself and changes nothing: the first at line 2",
        "unused keys: chosen",
    )
    path.write_text('{"prompt": "a", "rejected": "no", "samples": []}\n')
    with pytest.raises(DataError, match="line 1, /samples: expected an array of answers"):
        load_rows(path, "d2o")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(dispreferred(), min_size=1, max_size=4))
def test_rows_reach_the_dataset_unchanged(drawn: list[DispreferredRow]) -> None:
    for row, record in zip(drawn, to_dispreferred(drawn), strict=True):
        assert (record["prompt"], record["rejected"], record.get("samples")) == (
            row.prompt,
            row.rejected,
            row.samples,
        )
        assert parse_dispreferred(record) == row


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dispreferred())
def test_rendered_sequences_are_prompt_and_answer(tokenizer: Any, row: DispreferredRow) -> None:
    sequences = row.render(tokenizer)
    answers = [row.rejected, *(row.samples or [])]
    assert [one.name for one in sequences][:2] == ["rejected", "sample 1"][: len(answers)]
    for sequence, answer in zip(sequences, answers, strict=True):
        whole = tokenizer.apply_chat_template(row.prompt + answer, tokenize=False)
        assert tokenizer.decode(sequence.ids, clean_up_tokenization_spaces=False) == whole
        ((start, end),) = sequence.loss_spans
        context = tokenizer.decode(sequence.ids[:start], clean_up_tokenization_spaces=False)
        prompt = tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False)
        assert prompt.startswith(context)
        assert end == len(sequence.ids)
