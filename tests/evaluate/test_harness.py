"""The command that runs lm-evaluation-harness."""

import importlib.util
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignkit.cli import app
from alignkit.errors import AlignkitError
from alignkit.evaluate import harness


def test_the_command_names_the_served_model_and_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[str], str]] = []
    monkeypatch.setattr(harness, "run_harness", lambda command, key: ran.append((command, key)) or 3)
    monkeypatch.setenv("ALIGNKIT_BASE_URL", "http://host:8000/v1")
    monkeypatch.setenv("ALIGNKIT_API_KEY", "sk-mine")
    monkeypatch.setenv("ALIGNKIT_HOME", str(tmp_path))
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text('{"max_position_embeddings": 512}')
    done = CliRunner().invoke(app, ["eval", "ft:tiny:default:x:1", "--harness", "arc_easy,piqa"])
    assert done.exit_code == 3
    ((command, key),) = ran
    assert key == "sk-mine"
    assert command[:5] == [sys.executable, "-m", "lm_eval", "--model", "local-completions"]
    assert command[6].split(",") == [
        "model=ft:tiny:default:x:1",
        "base_url=http://host:8000/v1/completions",
        f"tokenizer={tmp_path / 'models' / 'tiny'}",
        "tokenizer_backend=huggingface",
        "num_concurrent=8",
        "max_retries=3",
        "max_length=512",
    ]
    assert command[7:] == ["--tasks", "arc_easy,piqa"]


def test_without_the_harness_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(AlignkitError, match=r"--harness needs the package lm_eval, .*alignkit\[harness\]"):
        harness.run_harness(["false"], "key")


def test_a_name_with_a_comma_is_refused() -> None:
    with pytest.raises(AlignkitError, match="expected a tokenizer without commas"):
        harness.harness_command("http://x/v1", "m", "t", "a,b")
