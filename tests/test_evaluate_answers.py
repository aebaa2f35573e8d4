"""What is measured of both models' answers, without a model."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import DataError
from alignkit.evaluate.judging import Judge
from alignkit.evaluate_answers import Options, Question, compare, questions_of, text_of
from alignkit.recipe import Recipe
from alignkit.report.evaluation_report import Evaluated, write_evaluation
from alignkit.run.folder import RunFolder
from tests.evaluate.endpoint import Reply, chat, endpoint
from tests.tiny import build_tiny_tokenizer

ROWS = [
    Question([{"role": "user", "content": f"q{at}"}], "known", group)
    for at, group in enumerate(["a", "a", "b"])
]


class Lengths:
    """A reward model that prefers what is longer."""

    def score(self, conversations: Any) -> list[float]:
        return [float(len(one[-1]["content"])) for one in conversations]


def judge_of_good(body: dict[str, Any]) -> Reply:
    first = body["messages"][-1]["content"].split("<answer_A>")[1].split("</answer_A>")[0]
    return chat(f"Verdict: {'A' if 'good' in first else 'B'}")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with endpoint(judge_of_good) as judge:
        options = Options(prompts=3, judge=Judge(judge.url, "j"), reward_model=Lengths())  # type: ignore[arg-type]
        return compare(ROWS, ["bad"] * 3, ["good good", "good", "x"], options)


def test_win_rates_are_those_of_the_trained_model(found: dict[str, Any]) -> None:
    assert [found["judge"][name] for name in ("wins", "ties", "losses", "invalid")] == [2, 1, 0, 0]
    assert found["judge"]["rate"] == 2.5 / 3
    assert found["judge"]["consistent"] == pytest.approx(2 / 3)
    assert (found["reward_model"]["wins"], found["reward_model"]["losses"]) == (2, 1)
    assert (found["reward_model"]["trained"], found["reward_model"]["baseline"]) == ((9 + 4 + 1) / 3, 3.0)


def test_groups_have_their_own_rates(found: dict[str, Any]) -> None:
    assert {name: (one["rows"], one["judge"]["rate"]) for name, one in found["groups"].items()} == {
        "a": (2, 1.0),
        "b": (1, 0.5),
    }


def test_diversity_tells_both_models_apart(found: dict[str, Any]) -> None:
    assert found["diversity"]["distinct_1"] == {"untrained": 1 / 3, "trained": 2 / 4}
    assert found["diversity"]["words"] == {"untrained": 1.0, "trained": 4 / 3}


def test_against_data_the_baseline_is_the_known_answer() -> None:
    options = Options(prompts=3, reward_model=Lengths(), against="data")  # type: ignore[arg-type]
    found = compare(ROWS, ["bad"] * 3, ["long enough", "no", "known"], options)
    assert [row["reward_model"]["baseline"] for row in found["answers"]] == [5.0] * 3
    assert [found["reward_model"][name] for name in ("wins", "ties", "losses")] == [1, 1, 1]


def test_the_report_of_an_evaluation_is_inert_and_beside_its_json(
    found: dict[str, Any], tmp_path: Path
) -> None:
    hostile = "<script>alert(1)</script>"
    answers = found | {"answers": [found["answers"][0] | {"trained": hostile}]}
    run = RunFolder(tmp_path)
    path = write_evaluation(run, Evaluated(None, {"valid_loss": 0.75}, {"valid_loss": None}, answers, "j"))
    page = path.read_text(encoding="utf-8")
    assert hostile not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "default-src &#39;none&#39;" in page
    assert "67% the same verdict in both orders" in page
    stored = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert stored["metrics"] == {"untrained": {"valid_loss": 0.75}, "trained": {"valid_loss": None}}
    assert stored["judge"]["model"] == "j"


def recipe(tmp_path: Path, *rows: Any, **data: Any) -> Recipe:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = str(tmp_path / "rows.jsonl")
    return Recipe.parse(
        {
            "model": {"path": "x"},
            "data": {"train": file, "validation": file, "max_length": 64, **data},
            "method": {"type": "f_dpo"},
            "output_dir": "x",
        }
    )


def row(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "yes", "rejected": "no", **more}


def test_questions_have_their_group_and_the_preferred_answer(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer(tmp_path / "model")
    rows = [
        row("first", group="easy"),
        row("word " * 300),
        {"broken": 1},
        row("last", group="hard"),
        row("beyond"),
    ]
    first, last = questions_of(recipe(tmp_path, *rows), tokenizer, 2)
    assert (first.group, last.group) == ("easy", "hard")
    assert first.known == "yes"
    asked = [{"role": "user", "content": "first"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert first.ids == tokenizer(text, add_special_tokens=False).input_ids


def test_a_file_without_a_prompt_that_fits_is_one_sentence(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer(tmp_path / "model")
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has a prompt to answer within max_length 64"):
        questions_of(recipe(tmp_path, row("word " * 300)), tokenizer, 2)


def test_messages_as_text_keep_tool_calls() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert (
        text_of([{"role": "user", "content": "hi"}, call], roles=True)
        == 'user: hi\n\nassistant: [{"id": "1"}]'
    )
