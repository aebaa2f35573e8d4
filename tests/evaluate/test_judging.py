"""A judge behind a stand-in endpoint."""

import threading
from typing import Any

import pytest

from alignkit.evaluate.judging import Comparison, Judge, JudgeError, outcome_of, parse
from tests.evaluate.endpoint import Reply, chat, endpoint

PAIRS = [
    Comparison("user: why?", "good answer", "bad answer"),
    Comparison("user: how?", "bad one", "good one"),
]


def honest(body: dict[str, Any]) -> Reply:
    """Prefers the answer with the word good, wherever it stands."""
    text = body["messages"][-1]["content"]
    first = text.split("<answer_A>")[1].split("</answer_A>")[0]
    return chat(f"It is better.\n\nVerdict: {'A' if 'good' in first else 'B'}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Verdict: A", "first"),
        ("Both lack detail.\nVerdict: tie\n\n", "tie"),
        ("Verdict: A\nNo, on reflection:\nVerdict: B", "second"),
        ("Verdict: A.", "invalid"),
        ("verdict: a", "invalid"),
        ("Verdict: A or B", "invalid"),
        ("**Verdict: A**", "invalid"),
        ("Verdict: A\nThat is all.", "invalid"),
        ("", "invalid"),
    ],
)
def test_a_verdict_is_the_last_line_to_the_letter(text: str, expected: str) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("first", "second"), "win"),
        (("first", "tie"), "win"),
        (("tie", "first"), "loss"),
        (("second", "first"), "loss"),
        (("first", "first"), "tie"),
        (("tie", "tie"), "tie"),
        (("first", "invalid"), "invalid"),
    ],
)
def test_the_outcome_follows_from_both_orders(verdicts: tuple[Any, Any], expected: str) -> None:
    assert outcome_of(*verdicts) == expected


def test_every_pair_is_asked_in_both_orders() -> None:
    with endpoint(honest) as judge:
        found = Judge(judge.url, "judge").compare(PAIRS)
    assert [one.outcome for one in found] == ["win", "loss"]
    assert all(one.consistent for one in found)
    assert len(judge.asked) == 4
    assert {body["model"] for body in judge.asked} == {"judge"}


def test_a_judge_that_always_says_a_makes_ties() -> None:
    with endpoint(lambda _: chat("Verdict: A")) as judge:
        found = Judge(judge.url, "judge").compare(PAIRS)
    assert [(one.outcome, one.consistent) for one in found] == [("tie", False)] * 2


@pytest.mark.parametrize(
    "nonsense",
    [chat("I cannot."), chat(), (200, {"choices": None}), (200, {}), (200, []), (200, "<html>hello</html>")],
)
def test_nonsense_is_an_invalid_verdict(nonsense: Reply) -> None:
    with endpoint(lambda _: nonsense) as judge:
        assert [one.outcome for one in Judge(judge.url, "judge").compare(PAIRS)] == ["invalid"] * 2


@pytest.mark.parametrize("nonsense", ["The second one, clearly.", ""])
def test_a_judge_without_a_verdict_is_refused_before_it_judges(nonsense: str) -> None:
    with (
        endpoint(lambda _: chat(nonsense)) as judge,
        pytest.raises(JudgeError, match=rf"gives no verdict: expected .*Verdict: tie', found '{nonsense}'"),
    ):
        Judge(judge.url, "judge").try_out()


def test_a_judge_that_never_answers_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.evaluate.judging.TIMEOUT_SECONDS", 0.1)
    given_up = threading.Event()

    def never(_: object) -> Reply:
        given_up.wait(60)
        return chat()

    with endpoint(never) as asked:
        judge = Judge(asked.url, "judge", retries=0)
        with pytest.raises(JudgeError, match=r"does not answer: APITimeoutError"):
            judge.compare(PAIRS)
        given_up.set()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-judge")
    with endpoint(honest) as judge:
        Judge(judge.url, "judge").compare(PAIRS[:1])
    assert judge.keys == {"Bearer sk-judge"}


def test_a_judge_that_refuses_is_one_sentence() -> None:
    refusal = (401, {"error": {"message": "wrong key"}})
    with (
        endpoint(lambda _: refusal) as judge,
        pytest.raises(JudgeError, match=r"refused: status 401: .*wrong key"),
    ):
        Judge(judge.url, "judge").try_out()


def test_a_judge_that_is_not_there_is_one_sentence() -> None:
    with endpoint(honest) as gone:
        pass
    with pytest.raises(JudgeError, match=r"the judge judge at .* does not answer: APIConnectionError"):
        Judge(gone.url, "judge", retries=0).try_out()
