"""Warnings of other libraries that nobody can act on are dropped; all others are kept."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.noise import NOISE, drop_noise, no_bars_in_files
from tests.tiny import build_tiny_model


@pytest.mark.parametrize("name", NOISE)
def test_only_the_known_message_is_dropped(name: str) -> None:
    drop_noise()
    logger, heard = logging.getLogger(name), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        logger.warning(f"{NOISE[name]}: %s", "why")
        logger.warning("something else")
    finally:
        logger.removeHandler(handler)
    assert "something else" in heard
    assert not [message for message in heard if message == f"{NOISE[name]}: why"]


def test_filters_are_added_once() -> None:
    drop_noise()
    drop_noise()
    assert all(len(logging.getLogger(name).filters) == 1 for name in NOISE)


BARS = {"TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"}
LOADING = """
import sys
from alignkit.noise import no_bars_in_files
if sys.argv[2] == "quiet":
    no_bars_in_files()
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


@pytest.mark.slow
def test_no_bar_is_written_to_a_file(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")

    def errors(mode: str) -> str:
        command = [sys.executable, "-c", LOADING, str(model), mode]
        # other tests of this process may have turned bars off
        environment = {name: value for name, value in os.environ.items() if name not in BARS}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stderr

    assert "Loading weights" in errors("as ever")
    assert "Loading weights" not in errors("quiet")


def test_the_users_own_choice_of_bars_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    no_bars_in_files()
    assert os.environ["TQDM_DISABLE"] == "0"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
