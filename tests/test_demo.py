"""The demo's data holds what its rules ask for, and its script says what it knows when something fails."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from openai import APITimeoutError
from rich.console import Console

FOLDER = Path(__file__).parents[1] / "recipes" / "demo"


@pytest.fixture(scope="module")
def client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_client", FOLDER / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def said(client: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(record=True, width=200, force_terminal=False)
    monkeypatch.setattr(client, "console", console)
    return console


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def note(row: dict[str, Any]) -> str:
    text: str = row["input"]["messages"][0]["content"]
    return text.split("\n\n", maxsplit=1)[0]


def answer(row: dict[str, Any], kind: str) -> str:
    text: str = row[kind][0]["content"]
    return text


@pytest.mark.parametrize("name", ["train.jsonl", "pairs.jsonl"])
def test_no_note_is_both_trained_and_held_out(name: str) -> None:
    assert not {note(row) for row in rows(name)} & {note(row) for row in rows("validation.jsonl")}


def test_every_pair_has_one_short_sentence_and_another_answer() -> None:
    pairs = rows("pairs.jsonl")
    assert all(len(answer(row, "preferred_output").split()) <= 14 for row in pairs)
    assert all(answer(row, "preferred_output") != answer(row, "non_preferred_output") for row in pairs)
    questions = {row["input"]["messages"][0]["content"] for row in pairs}
    assert len(questions) == len(pairs)


def test_preferred_held_out_answers_state_their_facts(client: ModuleType) -> None:
    held_out = rows("validation.jsonl")
    for question, row in zip(client.read_questions(), held_out, strict=True):
        assert client.states(answer(row, "preferred_output"), question.facts), row


def test_a_dispreferred_answer_lacks_the_fact_or_is_longer(client: ModuleType) -> None:
    for question, row in zip(client.read_questions(), rows("validation.jsonl"), strict=True):
        bad, good = answer(row, "non_preferred_output"), answer(row, "preferred_output")
        assert not client.states(bad, question.facts) or len(bad.split()) > 1.4 * len(good.split()), row


@pytest.mark.parametrize(
    ("text", "facts", "right"),
    [
        ("It closes at 4 pm.", [["4"]], True),
        ("It closes at 45 past.", [["4"]], False),
        ("It closes at 14.", [["4"]], False),
        ("In black and Silver.", [["black"], ["silver"]], True),
        ("In black.", [["black"], ["silver"]], False),
        ("A larger size.", [["larg"]], True),
        ("Twice a week.", [["twice", "two"]], True),
        ("", [["no"]], False),
    ],
)
def test_facts_are_words_or_their_beginnings(
    client: ModuleType, text: str, facts: list[list[str]], right: bool
) -> None:
    assert client.states(text, facts) is right


def answering(replies: Any) -> Any:
    """A stand-in for the OpenAI client; `replies` makes an answer from the model's name."""

    def create(*, model: str, **_: Any) -> Any:
        message = SimpleNamespace(content=replies(model))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))


def questions(client: ModuleType, count: int) -> list[Any]:
    return [
        client.Question([{"role": "user", "content": f"Note [{n}].\n\nWhere?"}], [["here"]])
        for n in range(count)
    ]


def compare(client: ModuleType, replies: Any, asked: list[Any]) -> Any:
    with client.answering(replies, client.BASE_MODEL, asked) as before:
        return client.compare(replies, "ft:x", asked, before)


def test_answers_are_compared_question_by_question(client: ModuleType, said: Console) -> None:
    replies = answering(
        lambda model: "It is here." if model == "ft:x" else "Let us [calculate] " + "then " * 20
    )
    base, tuned = compare(client, replies, questions(client, 10))
    assert (base.share_right, tuned.share_right) == (0.0, 1.0)
    assert (base.share_to_the_point, tuned.share_to_the_point) == (0.0, 1.0)
    assert tuned.words == 3
    client.require_better(base, tuned)
    text = said.export_text()
    assert text.count("It is here.") == client.SHOWN
    assert "Note [0]." in text  # brackets are no markup
    assert "Let us [calculate]" in text


def test_a_request_that_fails_keeps_what_was_answered(client: ModuleType, said: Console) -> None:
    asked: list[str] = []

    def reply(model: str) -> str:
        if model == "ft:x":
            asked.append(model)
        if len(asked) > 12:
            raise APITimeoutError(request=None)  # type: ignore[arg-type]
        return "It is here."

    with pytest.raises(
        client.DemoError, match=r"Training, publishing .* are done, but after \d+ of 40 questions"
    ):
        compare(client, answering(reply), questions(client, 40))
    assert "It is here." in said.export_text()


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("well " * 20, "well " * 19, "to the point as rarely as before"),
        ("here " + "well " * 20, "here " + "well " * 15, "to the point as rarely as before"),
        ("here " + "well " * 20, "There.", "states fewer facts"),
    ],
)
def test_a_model_that_is_no_better_is_refused(
    client: ModuleType, said: Console, before: str, after: str, sentence: str
) -> None:
    replies = answering(lambda model: after if model == "ft:x" else before)
    base, tuned = compare(client, replies, questions(client, 2))
    with pytest.raises(client.DemoError, match=sentence):
        client.require_better(base, tuned)
