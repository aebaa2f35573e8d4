"""Labelled rows: every form gives the same row, and pairs are taken apart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data import LabelledRow, RowError, parse_labelled, render, row_kind, tokenise
from tests.data.strategies import FORMS, TEXT, message, rows

HI, YES = [message("user", "Hi")], [message("assistant", "yes")]
NO = [message("assistant", "no")]
GOOD, BAD = LabelledRow(HI, desirable=YES), LabelledRow(HI, undesirable=YES)


def written(label: Any, key: str = "label") -> list[dict[str, Any]]:
    """One row in every form."""
    return [
        {"prompt": "Hi", "completion": "yes", key: label},
        {"prompt": HI, "completion": YES, key: label},
        {"messages": HI + YES, key: label},
        {"instruction": "Hi", "input": "", "output": "yes", key: label},
        {
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "yes"}],
            key: label,
        },
    ]


@pytest.mark.parametrize("key", ["label", "kto_tag"])
@pytest.mark.parametrize(
    ("label", "row"), [(True, GOOD), (False, BAD), (1, GOOD), (0, BAD), ("True", GOOD), ("undesirable", BAD)]
)
def test_every_form_gives_the_same_row(label: Any, row: LabelledRow, key: str) -> None:
    for form in written(label, key):
        unused: set[str] = set()
        assert parse_labelled(form, unused) == row
        assert not unused


@given(rows(), st.sampled_from(FORMS))
def test_a_pair_gives_a_desirable_and_an_undesirable_answer(pair: Any, form: Any) -> None:
    row = parse_labelled(form(pair))
    assert row.desirable is not None
    assert row.undesirable is not None
    assert row.prompt + row.desirable == pair.prompt + pair.chosen
    assert row.prompt + row.undesirable == pair.prompt + pair.rejected


@pytest.mark.parametrize(
    ("row", "pointer", "sentence"),
    [
        (
            {"prompt": "Hi", "completion": "yes", "label": "maybe"},
            "/label",
            "true or false (whether the answer",
        ),
        ({"prompt": "Hi", "completion": "yes", "label": None}, "/label", "true or false"),
        ({"prompt": "Hi", "completion": "yes", "label": 0.5}, "/label", "true or false"),
        ({"prompt": "Hi", "completion": "yes"}, "/label", "the key of a row in TRL (label)'s form"),
        ({"messages": HI, "label": True}, "/messages", "a user turn and an answer after it"),
        ({"messages": YES, "label": True}, "/messages", "a user turn and an answer after it"),
    ],
)
def test_a_bad_row_is_named(row: Any, pointer: str, sentence: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_labelled(row)
    assert caught.value.pointer == pointer
    assert sentence in caught.value.expected


@given(TEXT)
def test_the_same_answer_as_desirable_and_undesirable_has_no_signal(text: str) -> None:
    same = [message("assistant", text)]
    assert LabelledRow(HI, same, same).has_no_signal
    assert not LabelledRow(HI, same).has_no_signal


class KTO:
    rows = "labelled"


def test_each_answer_becomes_a_row_of_trls_columns(tokenizer: Any) -> None:
    pair = LabelledRow(HI, YES, NO)
    assert [one.name for one in render(pair, tokenizer, method=KTO)] == ["desirable", "undesirable"]
    found = tokenise([pair, BAD], tokenizer, KTO, 64)
    assert found["label"][:] == [True, False, False]
    (good,) = render(GOOD, tokenizer, method=KTO)
    assert found[0]["prompt_ids"] + found[0]["completion_ids"] == good.ids
    assert len(found[0]["prompt_ids"]) == good.loss_spans[0][0]


def test_the_kind_is_found_by_its_name() -> None:
    assert row_kind("labelled").record is LabelledRow
