"""`alignkit chat`, with an engine that repeats what it hears."""

import io
from collections.abc import Iterator

import pytest
from openai import OpenAI

from alignkit.cli import chat
from tests.cli.conftest import Run
from tests.server.page.runs import MARKUP, finish
from tests.server.page.runs import run as job_that_trains
from tests.server.support import BASE_MODEL, Running


@pytest.fixture
def tuned(service: Running, client: OpenAI) -> str:
    return finish(service, job_that_trains(service, client, steps=0))


class Terminal(io.StringIO):
    """A terminal on which that is typed."""

    def isatty(self) -> bool:
        return True


def test_a_message_is_answered(run: Run) -> None:
    done = run(
        "chat", BASE_MODEL, "-m", f"Say {MARKUP} [red]x \x1b[31m", "--temperature", "0", "--max-tokens", "9"
    )
    assert (done.returncode, done.stdout) == (0, f"{MARKUP} [red]x \\x1b[31m \n"), done.stderr


def test_two_models_answer_the_same(run: Run, tuned: str) -> None:
    done = run("chat", BASE_MODEL, "--against", tuned, "-m", "Hello", "--system", "Be brief.", "--columns")
    heard = f"[{BASE_MODEL}]\n{BASE_MODEL} heard: Hello \n[{tuned}]\n{tuned} heard: Hello \n"
    assert (done.returncode, done.stdout) == (0, heard), done.stderr


def test_two_models_are_drawn_side_by_side(service: Running, key: str, tuned: str) -> None:
    with service.client(key) as client:
        speakers = [chat.Speaker(client, name, {}) for name in (BASE_MODEL, tuned)]
        chat._beside(speakers, "Hello")
    assert [speaker.heard for speaker in speakers] == [
        f"{name} heard: Hello " for name in (BASE_MODEL, tuned)
    ]


def test_a_pipe_holds_a_message_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Say one\n\nSay two\n"))
    assert run("chat", BASE_MODEL).stdout == "one \ntwo \n"


def test_a_conversation_is_remembered(service: Running, key: str) -> None:
    with service.client(key) as client:
        speaker = chat.Speaker(client, BASE_MODEL, {}, [{"role": "system", "content": "Be brief."}])
        assert "".join(speaker.answer("Say one")) == "one "
        list(speaker.answer("Say two"))
    roles = [message["role"] for message in speaker.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert speaker.messages[-1]["content"] == "two "


def test_an_error_does_not_end_a_conversation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("Say one\nSay two\n"))
    models, answer = iter(("gone", BASE_MODEL)), chat.Speaker.answer

    def with_a_model_that_is_gone_at_first(speaker: chat.Speaker, message: str) -> Iterator[str]:
        speaker.model = next(models)
        return answer(speaker, message)

    monkeypatch.setattr(chat.Speaker, "answer", with_a_model_that_is_gone_at_first)
    done = run("chat", BASE_MODEL)
    assert done.returncode == 0
    assert "error: The model 'gone' does not exist" in done.stderr
    assert "two \n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("nothing", "-m", "x"), 1, "nothing"),
        ((BASE_MODEL, "--against", "nothing", "-m", "x"), 1, "nothing"),
        ((BASE_MODEL, "-m", "x", "--temperature", "3"), 2, "temperature"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    run: Run, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = run("chat", *arguments)
    assert done.returncode == status
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
