"""What experiments measure, on values that are worked out by hand."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from alignkit.errors import DataError
from evidence.dispreferred import is_short, rows_of
from evidence.frontier import reward
from evidence.questions import Question
from evidence.small_runs import Read, calibration, joined
from evidence.students import rouge_l

SUM = Question("sums", "What is 2 plus 3?", "5", "6", "2 plus 3 is {}.")


@pytest.mark.parametrize(
    ("answer", "expected"), [("5", 0.99), ("It is 5.", 0.92), ("15", -0.02), ("", 0.0), ("five", -0.04)]
)
def test_a_reward_counts_the_fact_as_a_word_less_the_length(answer: str, expected: float) -> None:
    assert reward(SUM, answer) == pytest.approx(expected)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l(["the cat sat down"], ["The dog sat down there"]) == pytest.approx(2 * 3 / 9)
    assert rouge_l(["a b", "a"], ["a b", "b"]) == pytest.approx(0.5)
    assert rouge_l([""], [""]) == 0.0


def test_tokens_of_answers_are_read_one_after_another() -> None:
    sure = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    reads = [Read(sure[:1], torch.tensor([0])), Read(sure[1:], torch.tensor([0]))]
    assert [one.logp for one in reads] == pytest.approx([math.log(0.9), math.log(0.2)])
    tokens = joined(reads)
    assert tokens.ids.tolist() == [0, 0]
    assert calibration(tokens) == pytest.approx((0.1 + 0.8) / 2)  # sure 0.9 and right, sure 0.8 and wrong


def test_rows_of_any_form_are_read_and_long_ones_neither_train_nor_ask(tmp_path: Path) -> None:
    long = "word " * 100
    texts = [("a", "b", "c"), (long, "b", "c"), ("a", long, "c")]
    forms = [
        [dict(zip(("prompt", "chosen", "rejected"), text, strict=True)) for text in texts],
        [
            {
                "input": {"messages": [{"role": "user", "content": prompt}]},
                "preferred_output": [{"role": "assistant", "content": chosen}],
                "non_preferred_output": [{"role": "assistant", "content": rejected}],
            }
            for prompt, chosen, rejected in texts
        ],
    ]
    for form in forms:
        path = tmp_path / "rows.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, form)).encode()))
        assert list(map(is_short, rows_of(path))) == [True, False, False]


def test_rows_without_an_answer_are_left_out_while_they_are_few(tmp_path: Path) -> None:
    path, row = tmp_path / "rows.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}
    lines = [json.dumps(row)] * 39 + [json.dumps(row | {"rejected": ""})]
    path.write_text("\n".join(lines))
    assert len(rows_of(path)) == 39
    path.write_text("\n".join(lines[20:] + lines[-1:]))
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        rows_of(path)
