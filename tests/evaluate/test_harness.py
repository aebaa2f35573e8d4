"""The command that runs lm-evaluation-harness, and a stand-in that takes what the real one does."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner, Result

from alignkit.cli import app
from alignkit.cli.evaluation import counting_of
from alignkit.errors import AlignkitError
from alignkit.evaluate import harness
from alignkit.evaluate.harness import Counting
from tests.tiny import build_tiny_tokenizer

STAND_IN = Path(__file__).with_name("harness") / "stand_in"
MODEL = "ft:tiny:default:x:1"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the imported base model, on a machine with a service."""
    monkeypatch.setenv("ALIGNKIT_BASE_URL", "http://host:8000/v1")
    monkeypatch.setenv("ALIGNKIT_API_KEY", "sk-mine")
    monkeypatch.setenv("ALIGNKIT_HOME", str(tmp_path))
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    build_tiny_tokenizer(folder)
    return folder


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", MODEL, *arguments])


def test_the_command_names_the_served_model_and_its_tokenizer(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[str], str]] = []
    monkeypatch.setattr(harness, "run_harness", lambda command, key: ran.append((command, key)) or 3)
    done = evaluate("--harness", "arc_easy,piqa")
    assert done.exit_code == 3
    ((command, key),) = ran
    assert key == "sk-mine"
    assert command[:5] == [sys.executable, "-m", "lm_eval", "--model", "local-completions"]
    assert command[6].split(",") == [
        f"model={MODEL}",
        "base_url=http://host:8000/v1/completions",
        f"tokenizer={base}",
        "tokenizer_backend=huggingface",
        "num_concurrent=8",
        "max_retries=3",
        "timeout=900",
        "max_length=512",
    ]
    assert command[7:] == ["--tasks", "arc_easy,piqa"]


def test_the_harness_takes_the_command_and_what_comes_after_two_dashes(
    base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    more = ["--apply_chat_template", "--limit", "10", "--num_fewshot", "2", "--output_path", "out"]
    done = evaluate("--harness", "tasks/words.yaml,piqa", "--", *more)
    assert done.exit_code == 3
    found = json.loads(capfd.readouterr().out)
    assert found["tasks"] == ["tasks/words.yaml,piqa"]
    assert (found["apply_chat_template"], found["limit"], found["num_fewshot"]) == (True, 10.0, 2)
    assert (found["output_path"], found["key"]) == ("out", "sk-mine")


def test_the_start_token_is_asked_for_where_the_model_expects_it(base: Path) -> None:
    tokenizer = build_tiny_tokenizer(base)
    assert not counting_of(str(base)).starts
    start = tokenizer.bos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(base)
    counting = counting_of(str(base))
    assert "add_bos_token=True" in harness.harness_command("http://x/v1", "m", "t", counting)[6]
    # A chat template writes it.
    for more in (["--apply_chat_template"], ["--apply_chat_template=default"]):
        assert "add_bos_token" not in harness.harness_command("http://x/v1", "m", "t", counting, more)[6]


def test_a_hub_id_is_left_to_the_harness(base: Path) -> None:
    assert counting_of("somebody/model") == Counting("somebody/model", None, False)


def test_without_the_harness_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(AlignkitError, match=r"--harness needs the package lm_eval, .*alignkit\[harness\]"):
        harness.run_harness(["false"], "key")


def test_a_name_with_a_comma_is_refused() -> None:
    with pytest.raises(AlignkitError, match="expected a tokenizer without commas"):
        harness.harness_command("http://x/v1", "m", "t", Counting("a,b"))


def test_further_arguments_without_the_harness_are_refused(base: Path) -> None:
    done = evaluate("--", "--limit", "10")
    assert str(done.exception) == "--limit 10: expected further arguments only with --harness"


def test_json_is_the_harness_own(base: Path) -> None:
    done = evaluate("--harness", "piqa", "--json")
    assert "-- --output_path" in str(done.exception)
