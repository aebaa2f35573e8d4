"""The report of a run: complete, readable without the network, and inert whatever the texts in it are."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from alignkit.report import report_at_end, write_report
from alignkit.run import facts
from alignkit.run.folder import RunFolder
from tests.report.folders import drawn, metrics, warning, write_run

HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\ud800\x00'
FACTS: dict[str, Any] = {
    "environment": {"torch": "9.9", "device": "CPU"},
    "data": [
        {
            "file": "pairs.jsonl",
            "rows": 12_345,
            "prompt": {"p50": 7, "p90": 8, "p99": 9, "maximum": 11},
            "answers": {"chosen": {"p50": 1, "p90": 2, "p99": 3, "maximum": 4}},
            "total": {"p50": 21, "p90": 22, "p99": 23, "maximum": 24},
            "truncated": 3,
        }
    ],
    "estimate": {
        "device": "cpu", "devices": 1, "stage": "single", "micro_batch_size": 4,
        "steps": 4, "step_seconds": 0.5, "seconds": 2.0, "peak_bytes": 3 * 2**30,
    },
    "measured": {"steps": 4, "step_seconds": 6.0, "peak_bytes": 2**31},
}  # fmt: skip


class Page(HTMLParser):
    """The tags with their attributes, and the text, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def write(folder: Path, *events: dict[str, Any], **files: Any) -> Page:
    run = write_run(folder, *events, **files)
    return Page(write_report(RunFolder(run)).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    events = [
        drawn(0, "An old answer.", prompt="Why is the sky blue?"),
        *(metrics(step, train_loss=1 / step, valid_answers_kl=0.25 * step) for step in (1, 2, 3, 4)),
        drawn(4, "A new answer.", sound=False, prompt="Why is the sky blue?"),
        warning("The model may have collapsed at step 4"),
    ]
    result = {"status": "succeeded", "steps": 4, "seconds": 250.0, "trained_tokens": 4096}
    return write(tmp_path_factory.mktemp("report") / "my-run", *events, result=result, facts=FACTS)


@pytest.mark.parametrize(
    "expected",
    [
        "my-run",
        "succeeded",
        "An old answer.",
        "A new answer.",
        "it repeats",
        "The model may have collapsed at step 4",
        "beta: 0.1",
        "9.9",
        "12,345",
        "pairs.jsonl",
        "4,096",
        "1 x cpu, single, micro-batch 4",
    ],
)
def test_the_report_shows(page: Page, expected: str) -> None:
    assert expected in page.text


def test_time_and_memory_stand_beside_the_estimate(page: Page) -> None:
    words = " ".join(page.text.split())
    assert "time of a step 0.5 s 1.5 s" in words
    assert "peak memory 3 GiB 2 GiB" in words


def test_charts_are_in_the_page_and_beside_it(tmp_path: Path) -> None:
    found = write(tmp_path / "run", metrics(1, train_loss=1.0), metrics(2, train_loss=0.5))
    (image,) = [attributes for tag, attributes in found.tags if tag == "img"]
    png = (tmp_path / "run" / "report" / "loss.png").read_bytes()
    assert image["src"] == f"data:image/png;base64,{base64.b64encode(png).decode()}"
    assert image["alt"] == "Loss by step. Last values: training 0.5"


def test_a_report_written_again_leaves_no_chart_of_the_earlier_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(1, train_loss=1.0))
    (run / "report").mkdir()
    (run / "report" / "kl.png").write_bytes(b"old")
    write_report(RunFolder(run))
    assert [path.name for path in (run / "report").iterdir()] == ["loss.png"]


def test_texts_of_others_run_nothing_and_load_nothing(tmp_path: Path) -> None:
    events = [
        drawn(0, HOSTILE, prompt=HOSTILE),
        metrics(1, **{f"train_{HOSTILE[:-2]}": 1.0}),
        drawn(1, HOSTILE, prompt=HOSTILE),
        warning(HOSTILE, level="error"),
    ]
    named = {"method": {"type": HOSTILE[:-2]}, "model": {"path": HOSTILE[:-2]}}
    result = {"status": HOSTILE, "error": {"message": HOSTILE}, "phases": {HOSTILE: 1.0}}
    hostile = {
        "environment": {HOSTILE: HOSTILE},
        "data": [{"file": HOSTILE}],
        "estimate": {"reason": HOSTILE},
    }
    found = write(
        tmp_path / "<img src=x onerror=alert(3)>", *events, recipe=named, result=result, facts=hostile
    )
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "svg"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"href", "srcset", "style", "action"} & attributes.keys()
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
    assert found.text.count("<script>alert(1)</script>") >= 10


def test_the_page_forbids_scripts_and_its_policy_allows_its_own_style(page: Page) -> None:
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_styles_digest_is_that_of_its_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(1, train_loss=1.0))
    text = write_report(RunFolder(run)).read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"&#39;sha256-{digest}&#39;" in text


def test_a_run_without_facts_answers_and_result_has_a_report(tmp_path: Path) -> None:
    found = write(tmp_path / "run", metrics(1, train_loss=1.0))
    assert "unfinished" in found.text
    assert "No answers were drawn." in found.text
    assert "This run kept no estimate." in found.text


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    error = {"code": "not_finite", "message": "Training stopped: the loss is NaN"}
    found = write(tmp_path / "run", metrics(1, train_loss=1.0), result={"status": "failed", "error": error})
    assert "Training stopped: the loss is NaN" in found.text


def test_no_path_of_the_machine_is_in_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(1, train_loss=1.0), warning(f"{tmp_path}/run/x is gone"))
    text = write_report(RunFolder(run)).read_text(encoding="utf-8")
    assert "secret-place" not in text
    assert str(tmp_path) not in text


def test_a_report_that_fails_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", "on")
    run = write_run(tmp_path / "run", metrics(1, train_loss=1.0))
    (run / "report").write_text("a file where the charts' folder should be")
    report_at_end(RunFolder(run))
    assert capsys.readouterr().err.startswith("warning: the report could not be written: ")


@pytest.mark.parametrize(("switch", "rank"), [("off", "0"), ("on", "1")])
def test_no_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str, rank: str
) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", switch)
    monkeypatch.setenv("RANK", rank)
    run = RunFolder(write_run(tmp_path / "run", metrics(1, train_loss=1.0)))
    report_at_end(run)
    assert not run.report.exists()
    assert facts.read(run) == {}


def test_a_run_that_made_no_step_has_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", "on")
    run = RunFolder(write_run(tmp_path / "run", warning("no such file", level="error")))
    report_at_end(run)
    assert not run.report.exists()
