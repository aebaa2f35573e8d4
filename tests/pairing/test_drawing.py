"""Pairs drawn from a stand-in endpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from alignkit.cli import app
from alignkit.data.dataset import load_rows
from alignkit.errors import AlignkitError, DataError
from alignkit.pairing import EndpointAnswerer, SamplingSettings, read_prompts
from alignkit.pairing.drawing import outcome_of
from alignkit.sampling import SamplingError
from tests.evaluate.endpoint import Reply, chat, endpoint


def length(messages: list[dict[str, Any]], answer: str) -> float:
    """A rule: longer is better."""
    assert messages[-1]["role"] == "user"
    return float(len(answer))


def broken(_messages: object, _answer: str) -> str:
    return "good"


def echo(body: dict[str, Any]) -> Reply:
    """As many answers as were asked for: the prompt with more and more signs."""
    text = body["messages"][-1]["content"]
    return chat(*(text + "!" * at for at in range(body["n"])))


def prompts_file(tmp_path: Path, *texts: str) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def draw(prompts: Path, out: Path, url: str, *more: str, rule: str = "length") -> Result:
    arguments = ["data", "draw", "m", str(prompts), "-o", str(out), "--url", url, "--samples", "3"]
    return CliRunner().invoke(app, [*arguments, "--rule", f"{__name__}:{rule}", *more])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_and_the_worst_answer_make_a_pair_that_trains(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    with endpoint(echo) as model:
        done = draw(prompts_file(tmp_path, "Why", "How"), out, model.url)
    assert done.exit_code == 0, done.output
    assert rows(out)[0] == {
        "prompt": [{"role": "user", "content": "Why"}],
        "chosen": [{"role": "assistant", "content": "Why!!"}],
        "rejected": [{"role": "assistant", "content": "Why"}],
        "score_chosen": 5.0,
        "score_rejected": 3.0,
    }
    assert [row.chosen[0]["content"] for row in load_rows(out, "f_dpo")] == ["Why!!", "How!!"]


def test_a_repeated_prompt_is_drawn_once_and_a_repeated_answer_is_no_pair(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    with endpoint(lambda body: chat(*["same", " same ", ""][: body["n"]])) as model:
        done = draw(prompts_file(tmp_path, "Why", "Why"), out, model.url)
    assert done.exit_code == 0, done.output
    assert len(model.asked) == 1
    assert out.read_text() == ""
    assert "1 with one answer" in done.output


def test_a_drawing_that_broke_off_continues_with_what_is_missing(tmp_path: Path) -> None:
    out, texts = tmp_path / "pairs.jsonl", [f"prompt {at}" for at in range(10)]

    def until_the_ninth(body: dict[str, Any]) -> Reply:
        last = body["messages"][-1]["content"]
        return (400, {"error": {"message": "no more"}}) if last in {"prompt 8", "prompt 9"} else echo(body)

    with endpoint(until_the_ninth) as model:
        done = draw(prompts_file(tmp_path, *texts), out, model.url)
    assert "refused: status 400" in str(done.exception)
    assert len(rows(out)) == 8
    with (tmp_path / "pairs.draws.jsonl").open("a") as file:
        file.write('{"key": "half')
    with endpoint(echo) as model:
        done = draw(prompts_file(tmp_path, *texts), out, model.url)
    assert done.exit_code == 0, done.output
    assert sorted(body["messages"][-1]["content"] for body in model.asked) == ["prompt 8", "prompt 9"]
    assert [row["prompt"][0]["content"] for row in rows(out)] == texts


def test_other_settings_do_not_continue_a_drawing(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    prompts = prompts_file(tmp_path, "Why")
    with endpoint(echo) as model:
        draw(prompts, out, model.url)
        before = out.read_bytes()
        done = draw(prompts, out, model.url, "--temperature", "0.5")
    assert '"temperature": 1.0' in str(done.exception)
    assert out.read_bytes() == before


def test_a_file_that_no_drawing_made_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    out.write_text("mine")
    done = draw(prompts_file(tmp_path, "Why"), out, "http://127.0.0.1:1/v1")
    assert "found one that no drawing made" in str(done.exception)
    assert out.read_text() == "mine"


def test_a_dry_run_asks_nothing_and_writes_nothing(tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, "Why", "How", "Why")
    with endpoint(echo) as model:
        done = draw(prompts, tmp_path / "pairs.jsonl", model.url, "--dry-run")
    assert done.exit_code == 0
    assert "2 prompts (1 repeats left out), 0 of them drawn already: 6 answers to draw" in done.output
    assert model.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_judge_ranks_by_every_two_answers_in_both_orders(tmp_path: Path) -> None:
    def judge(body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        first, second = (text.split(f"<answer_{name}>")[1].split("</answer")[0] for name in "AB")
        return chat(f"Verdict: {'A' if len(first) < len(second) else 'B'}")

    out = tmp_path / "pairs.jsonl"
    arguments = ["data", "draw", "m", str(prompts_file(tmp_path, "Why")), "-o", str(out), "--samples", "3"]
    with endpoint(echo) as model, endpoint(judge) as asked:
        done = CliRunner().invoke(
            app, [*arguments, "--url", model.url, "--judge", asked.url, "--judge-model", "j"]
        )
    assert done.exit_code == 0, done.output
    assert len(asked.asked) == 1 + 3 * 2  # one to try it out
    (pair,) = rows(out)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Why", "Why!!")
    assert (pair["score_chosen"], pair["score_rejected"]) == (1.0, 0.0)


def test_a_judge_that_talks_nonsense_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    arguments = ["data", "draw", "m", str(prompts_file(tmp_path, "Why")), "-o", str(out)]
    with endpoint(echo) as model, endpoint(lambda _: chat("I like both")) as asked:
        done = CliRunner().invoke(
            app, [*arguments, "--url", model.url, "--judge", asked.url, "--judge-model", "j"]
        )
    assert "the judge j at" in str(done.exception)
    assert "gives no verdict" in str(done.exception)
    assert model.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_judge_that_falls_silent_loses_nothing_that_was_drawn(tmp_path: Path) -> None:
    out, texts = tmp_path / "pairs.jsonl", [f"prompt {at}" for at in range(10)]
    arguments = ["data", "draw", "m", str(prompts_file(tmp_path, *texts)), "-o", str(out), "--samples", "2"]

    def judge(body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        if silent and ("prompt 8" in text or "prompt 9" in text):
            return 400, {"error": {"message": "no credit left"}}
        return chat(f"Verdict: {'A' if '!' in text.split('</answer_A>')[0] else 'B'}")

    with endpoint(echo) as model, endpoint(judge) as asked:
        arguments += ["--url", model.url, "--judge", asked.url, "--judge-model", "j"]
        silent = True
        done = CliRunner().invoke(app, arguments)
        assert "refused: status 400: " in str(done.exception)
        assert len(rows(out)) == 8
        silent = False
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [row["chosen"][0]["content"] for row in rows(out)] == [f"{text}!" for text in texts]
    drawn = [body["messages"][-1]["content"] for body in model.asked]
    assert sorted(drawn) == sorted([*texts, "prompt 8", "prompt 9"])


def test_an_endpoint_that_ignores_n_is_asked_again() -> None:
    with endpoint(lambda body: chat(f"answer {body['seed']}")) as model:
        found = EndpointAnswerer(model.url, "m").answer(
            [[{"role": "user", "content": "x"}]], SamplingSettings(3), [7]
        )
    assert found == [["answer 7", "answer 8", "answer 9"]]


def test_an_endpoint_without_answers_is_one_sentence() -> None:
    with (
        endpoint(lambda _: (200, "<html>")) as model,
        pytest.raises(SamplingError, match="expected a chat completion"),
    ):
        EndpointAnswerer(model.url, "m").answer(
            [[{"role": "user", "content": "x"}]], SamplingSettings(2), [0]
        )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--reward-model", "x"], "expected one of --judge, --reward-model and --rule, found several"),
        (["--judge", "http://x"], "--judge and --judge-model: expected both or neither"),
    ],
)
def test_rankers_that_do_not_fit_are_refused(tmp_path: Path, more: list[str], sentence: str) -> None:
    done = draw(prompts_file(tmp_path, "Why"), tmp_path / "out.jsonl", "http://127.0.0.1:1/v1", *more)
    assert sentence in str(done.exception)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("broken", "expected a number, found str"),
        ("missing", "cannot import"),
        ("__name__", "expected a function"),
    ],
)
def test_a_rule_that_is_none_is_one_sentence(tmp_path: Path, rule: str, sentence: str) -> None:
    with endpoint(echo) as model:
        done = draw(prompts_file(tmp_path, "Why"), tmp_path / "out.jsonl", model.url, rule=rule)
    assert isinstance(done.exception, AlignkitError)
    assert sentence in str(done.exception)


@pytest.mark.parametrize(
    ("scores", "margin", "expected"),
    [
        ([1.0, 2.0], 0.0, "pair"),
        ([1.0, 2.0], 1.0, "no difference"),
        ([1.0, 1.0], 0.0, "no difference"),
        ([None, 1.0], 0.0, "no scores"),
        ([1.0], 0.0, "one answer"),
        ([], 0.0, "one answer"),
    ],
)
def test_a_pair_needs_two_scores_that_differ_by_more_than_the_margin(
    scores: list[float | None], margin: float, expected: str
) -> None:
    assert outcome_of(scores, margin) == expected


@pytest.mark.parametrize(
    ("row", "last"),
    [
        ({"prompt": "Why?"}, "Why?"),
        (
            {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]},
            "Why?",
        ),
        (
            {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
            "Why?",
        ),
        ({"input": {"messages": [{"role": "user", "content": "Why?"}]}, "preferred_output": []}, "Why?"),
        ({"instruction": "Why?", "output": "So."}, "Why?"),
    ],
)
def test_prompts_of_every_form_are_read(tmp_path: Path, row: dict[str, Any], last: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (prompt,), repeats = read_prompts(path)
    assert (prompt.messages[-1]["role"], prompt.messages[-1]["content"], repeats) == ("user", last, 0)


@pytest.mark.parametrize("text", ['{"prompt": "x"}\n{"question": "x"}\n', '{"prompt": "x"}\nnonsense\n'])
def test_a_row_without_a_prompt_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: "):
        read_prompts(path)


def test_a_file_of_prompts_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^none\.jsonl: the file cannot be read: No such file"):
        read_prompts(tmp_path / "none.jsonl")
