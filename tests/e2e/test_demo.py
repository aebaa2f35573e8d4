"""The demo on a tiny model: it cannot learn the behaviour, so the demo must say so; and Ctrl-C ends everything."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from playwright.sync_api import expect
from rich.console import Console

from tests.server.page.browser import Visitor, chromium, needs_chromium
from tests.tiny import build_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
SCRIPT = Path(__file__).parents[2] / "recipes" / "demo" / "run.py"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    build_tiny_model(tmp_path / "models" / "smollm2-135m-instruct")
    return tmp_path


@pytest.fixture
def demo(home: Path) -> Iterator["subprocess.Popen[str]"]:
    # Tests that a shell runs in the background ignore Ctrl-C, and what they start would, unlike in a terminal.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "ALIGNKIT_DEMO_HOME": str(home), "COLUMNS": "200"},
    )
    signal.signal(signal.SIGINT, inherited)
    yield process
    process.kill()
    process.wait()


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def read_until(process: "subprocess.Popen[str]", words: str) -> str:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if words in line:
            return text
    raise AssertionError(f"{words!r} never came:\n{text}")


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


@pytest.mark.slow
def test_a_model_that_did_not_learn_fails_the_demo(demo: "subprocess.Popen[str]") -> None:
    text = read_until(demo, "questions that training never saw")
    started = family(demo)
    assert len(started) >= 2  # the service and vLLM
    rest, _ = demo.communicate(timeout=300)
    assert demo.returncode == 1, text + rest
    assert "error: The tuned model" in rest
    assert "Traceback" not in rest
    assert "on 36 held-out questions" in rest
    assert_gone(started)


@pytest.mark.slow
def test_ctrl_c_ends_everything(demo: "subprocess.Popen[str]") -> None:
    read_until(demo, "Fine-tuning job started")
    deadline = time.monotonic() + 60
    while not any("alignkit.train" in " ".join(process.cmdline()) for process in family(demo)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = family(demo)
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=90)
    assert demo.returncode == 130, rest
    assert "Stopped." in rest
    assert "Traceback" not in rest
    assert_gone(started)


@needs_chromium
@pytest.mark.slow
def test_the_offered_address_opens_and_its_key_signs_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_DEMO_HOME", str(home))
    monkeypatch.setenv("KEEP", "1")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    demo = importlib.import_module("run")
    console = Console(record=True, width=200, force_terminal=False)
    monkeypatch.setattr(demo, "console", console)
    waits = SimpleNamespace(Event=lambda: SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr(demo, "threading", waits)
    assert demo.wants_to_stay()
    with demo.service() as base_url, chromium() as browser:
        demo.stay(base_url, (home / "first-key").read_text().strip(), demo.BASE_MODEL)
        said = console.export_text()
        found = re.search(r"Open (\S+) in a browser and sign in with the key (\S+)", said)
        assert found is not None, said
        address, key = found.groups()
        visitor = Visitor.come(browser, address)
        page = visitor.signed_in(key)
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        visitor.context.close()
        assert visitor.wrong == []
