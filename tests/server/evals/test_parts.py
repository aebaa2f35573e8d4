"""References and similarities by hand-computed values."""

import math

import pytest

from alignkit_server.evals.references import TemplateError, fill
from alignkit_server.evals.similarity import METRICS

SCOPE = {
    "item": {"a": "x", "n": 3, "turns": [{"content": "hi"}], "deep": {"b.c": 1}},
    "sample": {"output_text": ""},
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{item.a}} and {{ item.a }}", "x and x"),
        ("{{item.n}}", "3"),
        ("{{item.turns[0].content}}", "hi"),
        ("{{item.turns.0.content}}", "hi"),
        ("{{item.turns}}", '[{"content": "hi"}]'),
        ("{{sample.output_text}}|{no}", "|{no}"),
    ],
)
def test_a_reference_becomes_its_value(text: str, filled: str) -> None:
    assert fill(text, SCOPE) == filled


@pytest.mark.parametrize("text", ["{{item.b}}", "{{item.turns[1]}}", "{{item.a.b}}", "{{item.turns.x}}"])
def test_a_reference_to_nothing_is_named(text: str) -> None:
    with pytest.raises(TemplateError, match="this row has no"):
        fill(text, SCOPE)


@pytest.mark.parametrize("text", ["{{}}", "{{item.}}", "{{item a}}", "{{item.turns[x]}}"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(TemplateError, match="expected a reference such as"):
        fill(text, SCOPE)


def test_a_value_that_looks_like_a_reference_stays_text() -> None:
    assert fill("{{item.a}}", {"item": {"a": "{{item.secret}}"}}) == "{{item.secret}}"


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("fuzzy_match", 2 * 11 / (15 + 11)),
        ("rouge_1", 2 * 3 / (4 + 3)),
        ("rouge_2", 2 * 1 / (3 + 2)),
        ("rouge_3", 0.0),
        ("rouge_l", 2 * 3 / (4 + 3)),
        ("gleu", 4 / 10),  # 3 words and 1 pair of 4 + 3 + 2 + 1 n-grams
        ("bleu", math.exp((math.log(3 / 4) + math.log(1 / 3) + math.log(1 / 4) + math.log(1 / 4)) / 4)),
    ],
)
def test_a_metric_has_the_value_computed_by_hand(metric: str, expected: float) -> None:
    assert METRICS[metric]("the old cat sat", "the cat sat") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", [name for name in METRICS if name not in {"rouge_4", "rouge_5"}])
def test_equal_texts_are_most_and_strange_ones_least_similar(metric: str) -> None:
    assert METRICS[metric]("a b c d", "a b c d") == pytest.approx(1.0)
    assert METRICS[metric]("", "a b c d") == 0.0
    assert METRICS[metric]("a b", "") == 0.0
