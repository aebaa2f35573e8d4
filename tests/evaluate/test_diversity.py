"""Diversity against values counted by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.evaluate.diversity import bleu, distinct_words, self_bleu

TEXTS = st.lists(st.text("ab ", max_size=12), max_size=5)


def test_distinct_is_the_share_of_different_n_grams() -> None:
    answers = ["the cat the cat", "the dog"]
    assert distinct_words(answers, 1) == 3 / 6
    assert distinct_words(answers, 2) == 3 / 4  # the cat, cat the, (the cat), the dog
    assert distinct_words(["one"], 2) == 1.0


def test_bleu_of_a_text_worked_out_by_hand() -> None:
    # precisions: 4/5 words, 2/4 pairs, 1/3 triples, no quadruple: 2^-1 / 2
    words, reference = ["a", "b", "c", "x", "d"], ["a", "b", "c", "d", "e"]
    expected = math.exp(sum(map(math.log, (4 / 5, 2 / 4, 1 / 3, 0.5 / 2))) / 4)
    assert bleu(words, [reference]) == pytest.approx(expected)


def test_bleu_clips_repeats_by_the_reference_and_punishes_what_is_too_short() -> None:
    assert bleu(["a", "a"], [["a", "b"]]) == pytest.approx(math.sqrt(1 / 2 * 0.5))
    assert bleu(["a"], [["a", "b"]]) == pytest.approx(math.exp(-1))


def test_equal_answers_have_a_self_bleu_of_one() -> None:
    assert self_bleu(["the sky is blue today"] * 3) == pytest.approx(1.0)


def test_answers_without_a_common_word_have_a_low_self_bleu() -> None:
    found = self_bleu(["a b c d e", "f g h i j"])
    assert found == pytest.approx((1 / 2 / 5 * 1 / 4 / 4 * 1 / 8 / 3 * 1 / 16 / 2) ** 0.25)


@pytest.mark.parametrize("answers", [[], ["one"], ["one", "", "  "]])
def test_one_answer_has_no_self_bleu(answers: list[str]) -> None:
    assert self_bleu(answers) is None


@given(TEXTS)
def test_both_lie_between_nothing_and_one(answers: list[str]) -> None:
    found = self_bleu(answers)
    assert found is None or -1e-12 <= found <= 1 + 1e-12
    assert all(0 <= distinct_words(answers, n) <= 1 for n in (1, 2, 3))
